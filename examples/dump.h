/* Tensors of a program in C or C++, for `check`: one line where each is made.

       #include "dump.h"
       DUMP(out, B * T * C, "model.layers.%d.self_attn", layer);

       mkdir dump && DUMP_TO=dump ./your_program
       python cli.py check dump --golden llama

   Names are the pack's, or those of modules of `transformers` (docs/golden.md); a gradient is "gradient.NAME" or
   "NAME.grad". Numbers are float or double, in the pack's layout, on a little-endian machine. Where DUMP_TO is not set,
   nothing is written, so that the lines can stay. */

#ifndef DUMP_H
#define DUMP_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define DUMP(numbers, count, ...) dump_numbers((numbers), sizeof *(numbers), (size_t)(count), __VA_ARGS__)

static void dump_numbers(const void *numbers, size_t size, size_t count, const char *name, ...) {
    const char *folder = getenv("DUMP_TO");
    char whole[512], path[1024];
    va_list values;
    FILE *file;
    if (!folder) return;
    va_start(values, name);
    vsnprintf(whole, sizeof whole, name, values);
    va_end(values);
    snprintf(path, sizeof path, "%s/%s.bin", folder, whole);
    file = fopen(path, "wb");
    if (!file || fwrite(numbers, size, count, file) != count || fclose(file)) {
        perror(path);
        exit(2);
    }
}

#endif
