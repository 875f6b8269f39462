/* Decodes one token for each of N sequences: a GPT with its key-value cache, from embedding to logits.
 *
 * The time goes into reading the weights, once per token. They are packed so that the weights of 64 outputs are
 * contiguous for each input: a tile of outputs stays in registers during the loop over inputs. All sequences of
 * a batch share one pass over the weights. Every sum adds its terms in the same order for any number of
 * sequences, so a sample does not depend on the others.
 */
#include "nonlinear.h"
#include "norm.h"
#include "tiles.h"

enum { PANEL = 64, ROWS = 6 }; /* outputs whose weights are contiguous; sequences per tile of registers */

/* The structures of gptkit/native/decode.py. All tensors are fp32; a pointer is NULL where there is no tensor. */
typedef struct {
  const float *weight, *bias;
} Norm;

typedef struct {
  const float *weight; /* packed: (panels, inputs, PANEL), zeros after the last output */
  const float *bias;
  int64_t inputs, outputs;
} Linear;

typedef struct {
  Norm attention_norm, mlp_norm;
  Linear attention_qkv, attention_projection, mlp_up, mlp_projection;
  float *keys, *values; /* (N, H, D, pitch) and (N, H, pitch, D) */
} Block;

typedef struct {
  int64_t n_layer, C, H, D, F, V;
  int64_t context_length, pitch; /* pitch: the context rounded up to whole panels */
  int32_t layer_norm, qk_norm, activation, threads;
  float norm_eps, qk_eps;
  const float *cosine, *sine; /* tables of the rotation, (context_length, D) */
  Norm final_norm;
  Linear lm_head;
  const Block *blocks;
} Model;

/* One panel of outputs for `rows` <= ROWS sequences: y = x weight + bias, or added to y */
static void linear_panel(const Linear *l, int64_t panel, const float *x, int64_t ldx, float *y, int64_t ldy,
                     int64_t rows, int add) {
  const float *w = l->weight + panel * l->inputs * PANEL;
  int64_t from = panel * PANEL, to = MIN(from + PANEL, l->outputs);
  float tile[ROWS * PANEL];
  product_of_64(rows, l->inputs, x, ldx, w, PANEL, tile, PANEL);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = from; j < to; j += LANES) {
      vec sum = load(tile + r * PANEL, j - from, 0);
      if (l->bias) sum += load_upto(l->bias, j, to, 0);
      if (add) sum += load_upto(y + r * ldy, j, to, 0);
      store_upto(y + r * ldy, j, to, sum, 0);
    }
}

/* All outputs for all sequences; called by every thread of a team, which share the work */
static void linear(const Linear *l, const float *x, float *y, int64_t N, int add) {
  int64_t panels = (l->outputs + PANEL - 1) / PANEL, groups = (N + ROWS - 1) / ROWS;
#pragma omp for schedule(static)
  for (int64_t item = 0; item < panels * groups; item++) {
    int64_t panel = item / groups, row = item % groups * ROWS;
    linear_panel(l, panel, x + row * l->inputs, l->inputs, y + row * l->outputs, l->outputs, MIN(ROWS, N - row), add);
  }
}

static void rotate_head(float *x, const float *cosine, const float *sine, int64_t D) {
  int64_t half = D / 2;
  for (int64_t i = 0; i < half; i++) {
    float a = x[i], b = x[half + i];
    x[i] = a * cosine[i] - b * sine[half + i];
    x[half + i] = b * cosine[i] + a * sine[half + i];
  }
}

/* One head of one sequence: stores the key and value of the token at position t and attends with its query */
static void attend_one(const Model *m, const Block *b, int64_t n, int64_t h, float *qkv, const float *bias,
                       float *out, int64_t t, float *scores) {
  int64_t D = m->D, pitch = m->pitch, C = m->C;
  float *q = qkv + h * D, *k = q + C, *v = k + C;
  float *keys = b->keys + (n * m->H + h) * D * pitch, *values = b->values + (n * m->H + h) * D * pitch;
  if (m->qk_norm) {
    norm_row(q, NULL, NULL, q, NULL, D, m->qk_eps, 0, 0);
    norm_row(k, NULL, NULL, k, NULL, D, m->qk_eps, 0, 0);
  }
  if (m->cosine) {
    rotate_head(q, m->cosine + t * D, m->sine + t * D, D);
    rotate_head(k, m->cosine + t * D, m->sine + t * D, D);
  }
  for (int64_t d = 0; d < D; d++) keys[d * pitch + t] = k[d];
  memcpy(values + t * D, v, (size_t)D * sizeof(float));
  float scale = 1.0f / sqrtf((float)D);
  vec top = splat(-INFINITY), total = {0};
  for (int64_t j = 0; j <= t; j += PANEL) product_of_64(1, D, q, 0, keys + j, pitch, scores + j, 0);
  for (int64_t j = 0; j <= t; j += LANES) {
    vec x = load(scores, j, 0) * scale;
    if (bias) x += load_upto(bias + h * (t + 1), j, t + 1, 0);
    if (j + LANES > t + 1) x = choose((ivec)(lane_index + (uint32_t)j > (uint32_t)t), splat(-INFINITY), x);
    store(scores, j, x, 0);
    top = larger(x, top);
  }
  float most = largest_of(top);
  if (most == -INFINITY) most = 0;
  for (int64_t j = 0; j <= t; j += LANES) {
    vec e = vexp(load(scores, j, 0) - most);
    if (j + LANES > t + 1) e = choose((ivec)(lane_index + (uint32_t)j > (uint32_t)t), splat(0), e);
    store(scores, j, e, 0);
    total += e;
  }
  float inverse = 1.0f / sum_of(total);
  int64_t d = 0;
  for (; d + 4 * LANES <= D; d += 4 * LANES) {
    tile_1_4(1, t + 1, scores, 0, 1, values + d, D, out + d, 0, 0);
    for (int v = 0; v < 4; v++) store(out + d, v * LANES, load(out + d, v * LANES, 0) * inverse, 0);
  }
  for (; d < D; d += 2 * LANES) {
    vec one = {0}, two = {0};
    if (d + 2 * LANES <= D) {
      for (int64_t j = 0; j <= t; j++) {
        one += scores[j] * load(values + j * D, d, 0);
        two += scores[j] * load(values + j * D, d + LANES, 0);
      }
      store(out, d + LANES, two * inverse, 0);
    } else {
      for (int64_t j = 0; j <= t; j++) {
        one += scores[j] * load_upto(values + j * D, d, D, 0);
        if (d + LANES < D) two += scores[j] * load_upto(values + j * D, d + LANES, D, 0);
      }
      if (d + LANES < D) store_upto(out, d + LANES, D, two * inverse, 0);
    }
    store_upto(out, d, D, one * inverse, 0);
  }
}

static void activate_row(const Model *m, float *h, float *out) {
  int64_t F = m->F;
  for (int64_t i = 0; i < F; i += LANES) {
    vec x = load_upto(h, i, F, 0);
    vec y = m->activation == SWIGLU ? x * logistic(x) * load_upto(h + F, i, F, 0) : activated(m->activation, x, 0);
    store_upto(out, i, F, y, 0);
  }
}

/* Size of `workspace`, in floats, for N sequences */
EXPORT int64_t decode_workspace(const Model *m, int64_t N) {
  int64_t up = m->blocks[0].mlp_up.outputs;
  return N * (m->C + 3 * m->C + m->C + up + m->F) + m->threads * m->pitch + 8 * LANES;
}

/* x (N, C): the embedded tokens at position t, overwritten; bias (H, t + 1), added to the scores, or NULL;
 * logits (N, V). Appends the tokens to the caches. */
EXPORT void decode(const Model *m, float *x, const float *bias, float *logits, int64_t N, int64_t t,
                   float *workspace) {
  int64_t C = m->C, H = m->H, up = m->blocks[0].mlp_up.outputs;
  float *h = workspace, *qkv = h + N * C, *attended = qkv + N * 3 * C, *hidden = attended + N * C,
        *active = hidden + N * up, *scores = active + N * m->F;
#pragma omp parallel num_threads(m->threads)
  {
    for (int64_t i = 0; i < m->n_layer; i++) {
      const Block *b = &m->blocks[i];
#pragma omp for schedule(static)
      for (int64_t n = 0; n < N; n++)
        norm_row(x + n * C, b->attention_norm.weight, b->attention_norm.bias, h + n * C, NULL, C, m->norm_eps,
                 m->layer_norm, 0);
      linear(&b->attention_qkv, h, qkv, N, 0);
#pragma omp for schedule(static)
      for (int64_t item = 0; item < N * H; item++) {
        int64_t n = item / H, head = item % H;
        attend_one(m, b, n, head, qkv + n * 3 * C, bias, attended + n * C + head * m->D, t,
                   scores + THREAD * m->pitch);
      }
      linear(&b->attention_projection, attended, x, N, 1);
#pragma omp for schedule(static)
      for (int64_t n = 0; n < N; n++)
        norm_row(x + n * C, b->mlp_norm.weight, b->mlp_norm.bias, h + n * C, NULL, C, m->norm_eps, m->layer_norm, 0);
      linear(&b->mlp_up, h, hidden, N, 0);
#pragma omp for schedule(static)
      for (int64_t n = 0; n < N; n++) activate_row(m, hidden + n * up, active + n * m->F);
      linear(&b->mlp_projection, active, x, N, 1);
    }
#pragma omp for schedule(static)
    for (int64_t n = 0; n < N; n++)
      norm_row(x + n * C, m->final_norm.weight, m->final_norm.bias, h + n * C, NULL, C, m->norm_eps, m->layer_norm, 0);
    linear(&m->lm_head, h, logits, N, 0);
  }
}

/* w (outputs, inputs) -> packed (panels, inputs, PANEL), as in Linear */
EXPORT void pack(const float *w, float *packed, int64_t outputs, int64_t inputs) {
  for (int64_t from = 0; from < outputs; from += PANEL)
    for (int64_t k = 0; k < inputs; k++)
      for (int64_t j = 0; j < PANEL; j++)
        *packed++ = from + j < outputs ? w[(from + j) * inputs + k] : 0.0f;
}
