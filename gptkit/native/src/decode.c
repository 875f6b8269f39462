/* One more token for each of N sequences: a GPT with its key-value cache, from embedding to logits.
 *
 * What costs time here is reading the weights, once a token. They are packed so that 64 outputs lie together
 * for each input: a tile of outputs stays in registers while the inputs go by. All sequences of a batch share a
 * reading. Every sum runs over its terms in the same order however many sequences there are, so a sample does
 * not depend on those made beside it.
 */
#include "nonlinear.h"
#include "norm.h"
#include "tiles.h"

#define RMS_EPS 1e-6f /* as in gptkit/native/functions.py */
enum { PANEL = 64, ROWS = 6 }; /* outputs that lie together; sequences that a tile of registers serves */

typedef struct {
  const float *w; /* (panels, inputs, PANEL), zeros beyond the last output */
  const float *bias;
  int64_t inputs, outputs;
} Linear;

typedef struct {
  const float *attention_gain, *attention_bias, *mlp_gain, *mlp_bias;
  Linear qkv, projection, up, down;
  float *keys, *values; /* (N, H, D, pitch) and (N, H, pitch, D) */
} Layer;

typedef struct {
  int64_t n_layer, C, H, D, F, V;
  int64_t context, pitch; /* pitch: the context in whole panels */
  int32_t centre, qk_norm, activation, threads;
  float eps;
  const float *cosine, *sine; /* (context, D), or NULL: nothing is turned */
  const float *final_gain, *final_bias;
  Linear head;
  const Layer *layers;
} Model;

/* One panel of outputs for `rows` <= ROWS sequences: y = x w + bias, or added to what y is */
static void panel_of(const Linear *l, int64_t panel, const float *x, int64_t ldx, float *y, int64_t ldy,
                     int64_t rows, int add) {
  const float *w = l->w + panel * l->inputs * PANEL;
  int64_t from = panel * PANEL, to = MIN(from + PANEL, l->outputs);
  float tile[ROWS * PANEL];
  if (rows == 1)
    tile_1_4(1, l->inputs, x, ldx, 1, w, PANEL, tile, PANEL, 0);
  else
    tile_6_4(rows, l->inputs, x, ldx, 1, w, PANEL, tile, PANEL, 0);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = from; j < to; j += LANES) {
      vec sum = load(tile + r * PANEL, j - from, 0);
      if (l->bias) sum += load_upto(l->bias, j, to, 0);
      if (add) sum += load_upto(y + r * ldy, j, to, 0);
      store_upto(y + r * ldy, j, to, sum, 0);
    }
}

/* All outputs for all sequences; called by every thread of a team, which share the work. */
static void linear(const Linear *l, const float *x, float *y, int64_t N, int add) {
  int64_t panels = (l->outputs + PANEL - 1) / PANEL, groups = (N + ROWS - 1) / ROWS;
#pragma omp for schedule(static)
  for (int64_t item = 0; item < panels * groups; item++) {
    int64_t panel = item / groups, row = item % groups * ROWS;
    panel_of(l, panel, x + row * l->inputs, l->inputs, y + row * l->outputs, l->outputs, MIN(ROWS, N - row), add);
  }
}

static void turn(float *x, const float *cosine, const float *sine, int64_t D) {
  int64_t half = D / 2;
  for (int64_t i = 0; i < half; i++) {
    float a = x[i], b = x[half + i];
    x[i] = a * cosine[i] - b * sine[half + i];
    x[half + i] = b * cosine[i] + a * sine[half + i];
  }
}

/* One head of one sequence: takes in the key and value of the token at place t, and gathers for its query. */
static void attend_one(const Model *m, const Layer *l, int64_t n, int64_t h, float *qkv, const float *bias,
                       float *out, int64_t t, float *scores) {
  int64_t D = m->D, pitch = m->pitch, C = m->C;
  float *q = qkv + h * D, *k = q + C, *v = k + C;
  float *keys = l->keys + (n * m->H + h) * D * pitch, *values = l->values + (n * m->H + h) * D * pitch;
  if (m->qk_norm) {
    norm_row(q, NULL, NULL, q, NULL, D, RMS_EPS, 0, 0);
    norm_row(k, NULL, NULL, k, NULL, D, RMS_EPS, 0, 0);
  }
  if (m->cosine) {
    turn(q, m->cosine + t * D, m->sine + t * D, D);
    turn(k, m->cosine + t * D, m->sine + t * D, D);
  }
  for (int64_t d = 0; d < D; d++) keys[d * pitch + t] = k[d];
  memcpy(values + t * D, v, (size_t)D * sizeof(float));
  float scale = 1.0f / sqrtf((float)D);
  vec top = splat(-INFINITY), total = {0};
  for (int64_t j = 0; j <= t; j += PANEL) tile_1_4(1, D, q, 0, 1, keys + j, pitch, scores + j, 0, 0);
  for (int64_t j = 0; j <= t; j += LANES) {
    vec x = load(scores, j, 0) * scale;
    if (bias) x += load_upto(bias + h * (t + 1), j, t + 1, 0);
    if (j + LANES > t + 1) x = choose((ivec)(counting + (uint32_t)j > (uint32_t)t), splat(-INFINITY), x);
    store(scores, j, x, 0);
    top = larger(x, top);
  }
  float most = largest_of(top);
  if (most == -INFINITY) most = 0;
  for (int64_t j = 0; j <= t; j += LANES) {
    vec e = vexp(load(scores, j, 0) - most);
    if (j + LANES > t + 1) e = choose((ivec)(counting + (uint32_t)j > (uint32_t)t), splat(0), e);
    store(scores, j, e, 0);
    total += e;
  }
  float inverse = 1.0f / sum_of(total);
  for (int64_t d = 0; d < D; d += 2 * LANES) {
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
    vec y = m->activation == SWIGLU ? x * logistic(x) * load_upto(h + F, i, F, 0) : apply(m->activation, x, 0);
    store_upto(out, i, F, y, 0);
  }
}

/* Numbers of `room` that decode needs for N sequences */
EXPORT int64_t decode_room(const Model *m, int64_t N) {
  int64_t up = m->layers[0].up.outputs;
  return N * (m->C + 3 * m->C + m->C + up + m->F) + m->threads * m->pitch + 8 * LANES;
}

/* x (N, C): the embedded tokens at place t, overwritten; bias (H, t + 1) is added to the scores, or NULL.
 * logits (N, V). Caches take the tokens in. */
EXPORT void decode(const Model *m, float *x, const float *bias, float *logits, int64_t N, int64_t t,
                   float *room) {
  int64_t C = m->C, H = m->H, up = m->layers[0].up.outputs;
  float *h = room, *qkv = h + N * C, *gathered = qkv + N * 3 * C, *wide = gathered + N * C,
        *active = wide + N * up, *scores = active + N * m->F;
#pragma omp parallel num_threads(m->threads)
  {
    for (int64_t i = 0; i < m->n_layer; i++) {
      const Layer *l = &m->layers[i];
#pragma omp for schedule(static)
      for (int64_t n = 0; n < N; n++)
        norm_row(x + n * C, l->attention_gain, l->attention_bias, h + n * C, NULL, C, m->eps, m->centre, 0);
      linear(&l->qkv, h, qkv, N, 0);
#pragma omp for schedule(static)
      for (int64_t item = 0; item < N * H; item++) {
        int64_t n = item / H, head = item % H;
        attend_one(m, l, n, head, qkv + n * 3 * C, bias, gathered + n * C + head * m->D, t,
                   scores + THREAD * m->pitch);
      }
      linear(&l->projection, gathered, x, N, 1);
#pragma omp for schedule(static)
      for (int64_t n = 0; n < N; n++)
        norm_row(x + n * C, l->mlp_gain, l->mlp_bias, h + n * C, NULL, C, m->eps, m->centre, 0);
      linear(&l->up, h, wide, N, 0);
#pragma omp for schedule(static)
      for (int64_t n = 0; n < N; n++) activate_row(m, wide + n * up, active + n * m->F);
      linear(&l->down, active, x, N, 1);
    }
#pragma omp for schedule(static)
    for (int64_t n = 0; n < N; n++)
      norm_row(x + n * C, m->final_gain, m->final_bias, h + n * C, NULL, C, m->eps, m->centre, 0);
    linear(&m->head, h, logits, N, 0);
  }
}

/* w (outputs, inputs) as Linear has it: packed (panels, inputs, PANEL) */
EXPORT void pack(const float *w, float *packed, int64_t outputs, int64_t inputs) {
  for (int64_t from = 0; from < outputs; from += PANEL)
    for (int64_t k = 0; k < inputs; k++)
      for (int64_t j = 0; j < PANEL; j++)
        *packed++ = from + j < outputs ? w[(from + j) * inputs + k] : 0.0f;
}
