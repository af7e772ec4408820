/* The first two layers of a port, held against a golden pack: layer norm and attention, forward and backward.

       python cli.py golden export gpt2-tied --format raw --out pack
       cc -O2 -o port examples/port.c -lm
       ./port pack              compares each tensor with the pack's; exit code 1 where one is off
       ./port pack dump         writes them to the folder "dump" as well, for
       python cli.py check dump --golden gpt2-tied

   -DREAL=double computes in double precision and holds the results to the limits of float64.

   B batch, T time, C channels, H heads, D channels of a head. The machine has to be little-endian, as the pack is. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

static const char *pack, *dump; /* folders; dump is NULL where nothing is to be written */
static int wrong;               /* tensors that are off */

static void fail(const char *what, const char *name) {
    fprintf(stderr, "%s %s\n", what, name);
    exit(2);
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (!memory) fail("no memory for", "a tensor");
    return memory;
}

static real *zeros(int count) { return allocate(count, sizeof(real)); }

static FILE *open_file(const char *folder, const char *name, const char *ending, const char *mode) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s%s", folder, name, ending);
    FILE *file = fopen(path, mode);
    if (!file) fail("cannot open", path);
    return file;
}

/* The pack: index.txt has a line for each tensor, NAME.bin its numbers */

typedef struct {
    char dtype[16], shape[64];
    int count, axes, size[4];
    double float32, float64, scale; /* tolerances, and what an error is divided by */
} Tensor;

/* Whether the pack has the tensor; fills in what index.txt says of it. */
static int find(const char *name, Tensor *tensor) {
    char line[512], found[128];
    FILE *index = open_file(pack, "index", ".txt", "r");
    int there = 0;
    while (!there && fgets(line, sizeof line, index))
        there = sscanf(line, "tensor %127s %15s %63s %lf %lf %lf", found, tensor->dtype, tensor->shape,
                       &tensor->float32, &tensor->float64, &tensor->scale) == 6 && !strcmp(found, name);
    fclose(index);
    tensor->count = 1;
    tensor->axes = 0;
    if (there && strcmp(tensor->shape, "scalar"))
        for (char *size = strtok(tensor->shape, "x"); size && tensor->axes < 4; size = strtok(NULL, "x"))
            tensor->count *= tensor->size[tensor->axes++] = atoi(size);
    return there;
}

/* A number of the configuration, such as n_head. */
static double config(const char *name) {
    char line[512], found[128];
    double value = 0;
    FILE *index = open_file(pack, "index", ".txt", "r");
    int there = 0;
    while (!there && fgets(line, sizeof line, index))
        there = sscanf(line, "config %127s %lf", found, &value) == 2 && !strcmp(found, name);
    fclose(index);
    if (!there) fail("the pack's configuration lacks", name);
    return value;
}

/* The numbers of a tensor, or NULL where the pack has none of that name, such as a bias. */
static real *load(const char *name) {
    Tensor tensor;
    if (!find(name, &tensor)) return NULL;
    int wide = !strcmp(tensor.dtype, "float64");
    real *numbers = zeros(tensor.count);
    FILE *file = open_file(pack, name, ".bin", "rb");
    for (int i = 0; i < tensor.count; i++) {
        double large = 0;
        float small = 0;
        if (fread(wide ? (void *)&large : (void *)&small, wide ? 8 : 4, 1, file) != 1) fail("too short:", name);
        numbers[i] = (real)(wide ? large : small);
    }
    fclose(file);
    return numbers;
}

static real *need(const char *name) {
    real *numbers = load(name);
    if (!numbers) fail("the pack lacks", name);
    return numbers;
}

/* Compare what was computed with the pack's tensor of that name. */
static void verify(const char *name, const real *mine) {
    Tensor tensor;
    if (!find(name, &tensor)) fail("the pack lacks", name);
    real *golden = need(name);
    double limit = sizeof(real) == 8 ? tensor.float64 : tensor.float32, error = 0;
    int worst = 0;
    for (int i = 0; i < tensor.count; i++) {
        double off = fabs((double)mine[i] - golden[i]) / tensor.scale;
        if (!(off <= error)) error = off, worst = i; /* a NaN is the worst of all */
    }
    int right = error <= limit;
    printf("%-5s %-50s error %.1e, limit %.0e", right ? "ok" : "OFF", name, error, limit);
    if (!right) printf("; number %d: yours %.9g, golden %.9g", worst, (double)mine[worst], (double)golden[worst]);
    printf("\n");
    wrong += !right;
    free(golden);
    if (dump) {
        FILE *file = open_file(dump, name, ".bin", "wb");
        fwrite(mine, sizeof(real), tensor.count, file);
        if (fclose(file)) fail("cannot write", name);
    }
}

/* Layers: x has N rows; a gradient is called d + name */

static void layer_norm_forward(real *y, const real *x, const real *weight, const real *bias, int N, int C, real eps) {
    for (int n = 0; n < N; n++, x += C, y += C) {
        real mean = 0, variance = 0;
        for (int c = 0; c < C; c++) mean += x[c] / C;
        for (int c = 0; c < C; c++) variance += (x[c] - mean) * (x[c] - mean) / C;
        real scale = 1 / (real)sqrt(variance + eps);
        for (int c = 0; c < C; c++) y[c] = (x[c] - mean) * scale * weight[c] + (bias ? bias[c] : 0);
    }
}

static void layer_norm_backward(real *dx, real *dweight, real *dbias, const real *dy, const real *x,
                                const real *weight, int N, int C, real eps) {
    for (int n = 0; n < N; n++, x += C, dx += C, dy += C) {
        real mean = 0, variance = 0, mean_dn = 0, mean_dn_n = 0;
        for (int c = 0; c < C; c++) mean += x[c] / C;
        for (int c = 0; c < C; c++) variance += (x[c] - mean) * (x[c] - mean) / C;
        real scale = 1 / (real)sqrt(variance + eps);
        for (int c = 0; c < C; c++) {
            real normal = (x[c] - mean) * scale, dn = dy[c] * weight[c];
            mean_dn += dn / C;
            mean_dn_n += dn * normal / C;
            dweight[c] += dy[c] * normal;
            dbias[c] += dy[c];
        }
        for (int c = 0; c < C; c++) {
            real normal = (x[c] - mean) * scale;
            dx[c] = (dy[c] * weight[c] - mean_dn - normal * mean_dn_n) * scale;
        }
    }
}

/* y = x weight^T + bias, weight (out, in) */
static void linear_forward(real *y, const real *x, const real *weight, const real *bias, int N, int in, int out) {
    for (int n = 0; n < N; n++)
        for (int o = 0; o < out; o++) {
            real sum = bias ? bias[o] : 0;
            for (int i = 0; i < in; i++) sum += x[n * in + i] * weight[o * in + i];
            y[n * out + o] = sum;
        }
}

static void linear_backward(real *dx, real *dweight, real *dbias, const real *dy, const real *x, const real *weight,
                            int N, int in, int out) {
    for (int n = 0; n < N; n++)
        for (int o = 0; o < out; o++) {
            real d = dy[n * out + o];
            dbias[o] += d;
            for (int i = 0; i < in; i++) {
                dx[n * in + i] += d * weight[o * in + i];
                dweight[o * in + i] += d * x[n * in + i];
            }
        }
}

/* One head of one sequence: query, key, value and heads are (T, D), scores and probabilities (T, T). */
static void head_forward(real *heads, real *scores, real *probabilities, const real *query, const real *key,
                         const real *value, int T, int D) {
    real scale = 1 / (real)sqrt(D);
    for (int t = 0; t < T; t++) {
        real *score = scores + t * T, *p = probabilities + t * T, largest = -INFINITY, total = 0;
        for (int s = 0; s < T; s++) {
            score[s] = 0;
            for (int d = 0; d < D; d++) score[s] += query[t * D + d] * key[s * D + d] * scale;
        }
        for (int s = 0; s <= t; s++) largest = score[s] > largest ? score[s] : largest;
        for (int s = 0; s <= t; s++) total += p[s] = (real)exp(score[s] - largest); /* the future stays at 0 */
        for (int s = 0; s <= t; s++) p[s] /= total;
        for (int s = 0; s <= t; s++)
            for (int d = 0; d < D; d++) heads[t * D + d] += p[s] * value[s * D + d];
    }
}

static void head_backward(real *dquery, real *dkey, real *dvalue, real *dscores, real *dprobabilities,
                          const real *dheads, const real *probabilities, const real *query, const real *key,
                          const real *value, int T, int D) {
    real scale = 1 / (real)sqrt(D);
    for (int t = 0; t < T; t++) {
        const real *p = probabilities + t * T;
        real *dp = dprobabilities + t * T, *dscore = dscores + t * T, sum = 0;
        for (int s = 0; s < T; s++)
            for (int d = 0; d < D; d++) {
                dp[s] += dheads[t * D + d] * value[s * D + d];
                dvalue[s * D + d] += p[s] * dheads[t * D + d];
            }
        for (int s = 0; s < T; s++) sum += dp[s] * p[s];
        for (int s = 0; s < T; s++) {
            dscore[s] = p[s] * (dp[s] - sum);
            for (int d = 0; d < D; d++) {
                dquery[t * D + d] += dscore[s] * key[s * D + d] * scale;
                dkey[s * D + d] += dscore[s] * query[t * D + d] * scale;
            }
        }
    }
}

/* Where channel d of head h of token t in sequence b stands in (B, H, T, D), and in one of the parts of
   (B, T, parts, H, D): query, key and value are three. */
#define IN_HEADS(b, h, t, d) ((((b) * H + (h)) * T + (t)) * D + (d))
#define IN_ROWS(parts, b, t, part, h, d) (((((b) * T + (t)) * (parts) + (part)) * H + (h)) * D + (d))
#define EACH_NUMBER                 \
    for (int b = 0; b < B; b++)     \
        for (int h = 0; h < H; h++) \
            for (int t = 0; t < T; t++) \
                for (int d = 0; d < D; d++)

#define NORM "final_norm"
#define AT "blocks.0.attention"

static void check_layer_norm(int B, int T, int C) {
    int N = B * T;
    char stream[64], dstream[80];
    snprintf(stream, sizeof stream, "blocks.%d.residual_2", (int)config("n_layer") - 1);
    snprintf(dstream, sizeof dstream, "gradient.%s", stream);
    real *x = need(stream), *weight = need(NORM ".weight"), *bias = load(NORM ".bias"), eps = (real)config("norm_eps");
    real *y = zeros(N * C);
    layer_norm_forward(y, x, weight, bias, N, C, eps);
    verify(NORM, y);

    real *dy = need("gradient." NORM), *dx = zeros(N * C), *dweight = zeros(C), *dbias = zeros(C);
    layer_norm_backward(dx, dweight, dbias, dy, x, weight, N, C, eps);
    verify("gradient." NORM ".weight", dweight);
    if (bias) verify("gradient." NORM ".bias", dbias);
    verify(dstream, dx);
}

static void check_attention(int B, int T, int C, int H) {
    int N = B * T, D = C / H, pairs = B * H * T * T;
    real *x = need("blocks.0.norm_1");
    real *qkv_weight = need(AT ".query_key_value.weight"), *qkv_bias = load(AT ".query_key_value.bias");
    real *output_weight = need(AT ".output.weight"), *output_bias = load(AT ".output.bias");
    real *qkv = zeros(3 * N * C), *part[3] = {zeros(N * C), zeros(N * C), zeros(N * C)};
    real *scores = zeros(pairs), *probabilities = zeros(pairs), *heads = zeros(N * C), *merged = zeros(N * C);
    real *output = zeros(N * C);

    linear_forward(qkv, x, qkv_weight, qkv_bias, N, C, 3 * C);
    for (int i = 0; i < 3; i++) EACH_NUMBER part[i][IN_HEADS(b, h, t, d)] = qkv[IN_ROWS(3, b, t, i, h, d)];
    for (int at = 0; at < B * H; at++)
        head_forward(heads + at * T * D, scores + at * T * T, probabilities + at * T * T, part[0] + at * T * D,
                     part[1] + at * T * D, part[2] + at * T * D, T, D);
    EACH_NUMBER merged[IN_ROWS(1, b, t, 0, h, d)] = heads[IN_HEADS(b, h, t, d)];
    linear_forward(output, merged, output_weight, output_bias, N, C, C);
    verify(AT ".query", part[0]);
    verify(AT ".key", part[1]);
    verify(AT ".value", part[2]);
    verify(AT ".scores", scores);
    verify(AT ".probabilities", probabilities);
    verify(AT ".heads", heads);
    verify(AT ".output", output);

    real *doutput = need("gradient." AT ".output");
    real *dmerged = zeros(N * C), *doutput_weight = zeros(C * C), *doutput_bias = zeros(C);
    real *dheads = zeros(N * C), *dprobabilities = zeros(pairs), *dscores = zeros(pairs);
    real *dpart[3] = {zeros(N * C), zeros(N * C), zeros(N * C)}, *dqkv = zeros(3 * N * C);
    real *dx = zeros(N * C), *dqkv_weight = zeros(3 * C * C), *dqkv_bias = zeros(3 * C);

    linear_backward(dmerged, doutput_weight, doutput_bias, doutput, merged, output_weight, N, C, C);
    EACH_NUMBER dheads[IN_HEADS(b, h, t, d)] = dmerged[IN_ROWS(1, b, t, 0, h, d)];
    for (int at = 0; at < B * H; at++)
        head_backward(dpart[0] + at * T * D, dpart[1] + at * T * D, dpart[2] + at * T * D, dscores + at * T * T,
                      dprobabilities + at * T * T, dheads + at * T * D, probabilities + at * T * T,
                      part[0] + at * T * D, part[1] + at * T * D, part[2] + at * T * D, T, D);
    for (int i = 0; i < 3; i++) EACH_NUMBER dqkv[IN_ROWS(3, b, t, i, h, d)] = dpart[i][IN_HEADS(b, h, t, d)];
    linear_backward(dx, dqkv_weight, dqkv_bias, dqkv, x, qkv_weight, N, C, 3 * C);
    verify("gradient." AT ".output.weight", doutput_weight);
    if (output_bias) verify("gradient." AT ".output.bias", doutput_bias);
    verify("gradient." AT ".heads", dheads);
    verify("gradient." AT ".probabilities", dprobabilities);
    verify("gradient." AT ".scores", dscores);
    verify("gradient." AT ".value", dpart[2]);
    verify("gradient." AT ".key", dpart[1]);
    verify("gradient." AT ".query", dpart[0]);
    verify("gradient." AT ".query_key_value.weight", dqkv_weight);
    if (qkv_bias) verify("gradient." AT ".query_key_value.bias", dqkv_bias);
    verify("gradient.blocks.0.norm_1", dx);
}

int main(int count, char **arguments) {
    if (count != 2 && count != 3) fail("usage:", "port PACK [DUMP], folders that exist");
    pack = arguments[1];
    dump = count == 3 ? arguments[2] : NULL;
    Tensor tokens;
    if (!find("tokens", &tokens) || tokens.axes != 2) fail("no raw golden pack in", pack);
    int B = tokens.size[0], T = tokens.size[1], C = (int)config("d_model");
    check_layer_norm(B, T, C);
    check_attention(B, T, C, (int)config("n_head"));
    if (wrong)
        printf("%d tensors are off\n", wrong);
    else
        printf("every tensor agrees\n");
    return wrong != 0;
}
