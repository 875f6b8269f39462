/* Causal attention, forward and backward, one head of one sequence at a time in the memory of one processor.
 *
 * Scores are never written out whole: a block of queries takes what lies behind it, and the backward pass
 * computes the scores again from q, k and the logarithm of their sum (Dao et al. 2022). Products are fp32, in
 * tiles that stay in registers. Keys ahead of a block are not touched.
 */
#include "tiles.h"

enum { QUERIES = 32, TILE = 8 }; /* queries of a block, and of a part of it that shares what is ahead */

/* scores[r][j] = sum over d of q[r][d] kt[d][j] for keys 0 … keys - 1, rounded up to whole vectors */
INLINE void scores_of(int64_t rows, int64_t D, const float *q, int64_t ldq, const float *kt, int64_t ldk,
                      int64_t keys, float *scores, int64_t lds) {
  for (int64_t j = 0; j < keys; j += 2 * LANES) {
    if (j + LANES < keys)
      product_8_2(rows, D, q, ldq, 1, kt + j, ldk, scores + j, lds, 0);
    else
      product_8_1(rows, D, q, ldq, 1, kt + j, ldk, scores + j, lds, 0);
  }
}

typedef struct {
  int64_t B, H, T, D;
  int64_t q[3], k[3], v[3], out[3]; /* strides of (B, H, T) in elements; D lies together */
  int64_t bias_head;                /* stride of the bias from head to head; 0: one for all */
  uint64_t seed;
  float dropout;
  int32_t bf16, threads;
} Attention;

/* What one thread works with: rows padded to whole vectors, sequences to whole tiles */
typedef struct {
  int64_t T, D; /* padded */
  float *q, *k, *kt, *v, *vt, *dout, *dk, *dv, *p, *ds, *tile;
} Room;

static int64_t room_size(int64_t T, int64_t D, int back) {
  return back ? 8 * T * D + 2 * QUERIES * T + QUERIES * D : 4 * T * D + QUERIES * T + QUERIES * D;
}

static Room room_in(float *memory, int64_t T, int64_t D, int back) {
  Room r = {.T = T, .D = D};
  float **all[] = {&r.q, &r.kt, &r.v, &r.k, &r.vt, &r.dout, &r.dk, &r.dv};
  for (int i = 0; i < (back ? 8 : 4); i++, memory += T * D) *all[i] = memory;
  r.p = memory, memory += QUERIES * T;
  if (back) r.ds = memory, memory += QUERIES * T;
  r.tile = memory;
  return r;
}

/* Rows of a tensor as fp32, padded with zeros to (Tp, Dp) */
INLINE void fetch(const void *x, int64_t stride, int64_t T, int64_t D, float *to, int64_t Tp, int64_t Dp,
                  float scale, int bf16) {
  for (int64_t t = 0; t < T; t++)
    for (int64_t d = 0; d < Dp; d += LANES) {
      vec row = d < D ? load_upto(at(x, t * stride, bf16), d, D, bf16) * scale : splat(0);
      store(to + t * Dp, d, row, 0);
    }
  memset(to + T * Dp, 0, (size_t)((Tp - T) * Dp) * sizeof(float));
}

static void transpose(const float *x, int64_t Tp, int64_t Dp, float *to) {
  for (int64_t t = 0; t < Tp; t += LANES)
    for (int64_t d = 0; d < Dp; d++)
      for (int i = 0; i < LANES; i++) to[d * Tp + t + i] = x[(t + i) * Dp + d];
}

INLINE void give(const float *x, int64_t Dp, int64_t T, int64_t D, void *to, int64_t stride, int bf16) {
  for (int64_t t = 0; t < T; t++)
    for (int64_t d = 0; d < D; d += LANES)
      store_upto(at_(to, t * stride, bf16), d, D, load(x + t * Dp, d, 0), bf16);
}

INLINE void causal(vec *x, int64_t j, int64_t i, float ahead) {
  if (j + LANES > i + 1) *x = choose((ivec)(counting + (uint32_t)j > (uint32_t)i), splat(ahead), *x);
}

/* D as it is padded: a width that there is a product of */
static int64_t padded_width(int64_t D) {
  int64_t n = (D + LANES - 1) / LANES;
  return (n == 5 || n == 7 ? n + 1 : n) * LANES;
}

static void product_by_width(int64_t Dp, int64_t rows, int64_t K, const float *a, int64_t am, int64_t ak,
                             const float *b, float *c, int add) {
  switch (Dp / LANES) {
    case 1: product_8_1(rows, K, a, am, ak, b, Dp, c, Dp, add); break;
    case 2: product_8_2(rows, K, a, am, ak, b, Dp, c, Dp, add); break;
    case 3: product_8_3(rows, K, a, am, ak, b, Dp, c, Dp, add); break;
    case 4: product_6_4(rows, K, a, am, ak, b, Dp, c, Dp, add); break;
    case 6: product_4_6(rows, K, a, am, ak, b, Dp, c, Dp, add); break;
    default: product_3_8(rows, K, a, am, ak, b, Dp, c, Dp, add);
  }
}

static void forward_head(const Attention *s, const void *q, const void *k, const void *v, const float *bias,
                         void *out, float *lse, uint64_t row, const Room *r) {
  int64_t T = s->T, Tp = r->T, D = s->D, Dp = r->D;
  int bf16 = s->bf16;
  float scale = 1.0f / sqrtf((float)D);
  if (bf16) {
    fetch(q, s->q[2], T, D, r->q, Tp, Dp, scale, 1);
    fetch(k, s->k[2], T, D, r->k, Tp, Dp, 1, 1);
    fetch(v, s->v[2], T, D, r->v, Tp, Dp, 1, 1);
  } else {
    fetch(q, s->q[2], T, D, r->q, Tp, Dp, scale, 0);
    fetch(k, s->k[2], T, D, r->k, Tp, Dp, 1, 0);
    fetch(v, s->v[2], T, D, r->v, Tp, Dp, 1, 0);
  }
  transpose(r->k, Tp, Dp, r->kt);
  uint32_t threshold = threshold_of(s->dropout);
  for (int64_t start = 0; start < T; start += QUERIES) {
    int64_t rows = MIN(QUERIES, T - start), keys = start + rows;
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub);
      scores_of(here, D, r->q + (start + sub) * Dp, Dp, r->kt, Tp, start + sub + here, r->p + sub * Tp, Tp);
    }
    float inverse[QUERIES];
    for (int64_t i = 0; i < rows; i++) {
      float *p = r->p + i * Tp;
      vec top = splat(-INFINITY), total = {0};
      for (int64_t j = 0; j <= start + i; j += LANES) {
        vec x = load(p, j, 0);
        if (bias) x += load_upto(bias + (start + i) * T, j, T, 0);
        causal(&x, j, start + i, -INFINITY);
        store(p, j, x, 0);
        top = larger(x, top);
      }
      float most = largest_of(top);
      if (most == -INFINITY) most = 0; /* a bias may shut out all */
      uint32_t keys_[2];
      row_keys(s->seed, row * (uint64_t)T + (uint64_t)(start + i), keys_);
      int64_t j = 0;
      for (; j <= start + i; j += LANES) {
        vec e = vexp(load(p, j, 0) - most);
        causal(&e, j, start + i, 0);
        total += e;
        if (threshold) e *= kept(keys_, (uint32_t)j, threshold, 1 / (1 - s->dropout));
        store(p, j, e, 0);
      }
      for (; j < keys; j += LANES) store(p, j, splat(0), 0);
      float sum = sum_of(total);
      inverse[i] = 1 / sum;
      lse[start + i] = most + logf(sum);
    }
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub);
      product_by_width(Dp, here, start + sub + here, r->p + sub * Tp, Tp, 1, r->v, r->tile + sub * Dp, 0);
    }
    for (int64_t i = 0; i < rows; i++)
      for (int64_t d = 0; d < D; d += LANES) {
        vec x = load(r->tile + i * Dp, d, 0) * inverse[i];
        if (bf16)
          store_upto(at_(out, (start + i) * s->out[2], 1), d, D, x, 1);
        else
          store_upto(at_(out, (start + i) * s->out[2], 0), d, D, x, 0);
      }
  }
}

/* Gradients of one head. ds[i][j] = p (dp - delta): from it dq = ds k and dk = ds' q, both times the scale,
 * which q has in it already and dq gets at the end. */
static void backward_head(const Attention *s, const void *q, const void *k, const void *v, const float *bias,
                          const void *out, const void *dout, const int64_t dout_strides[3], const float *lse,
                          void *dq, void *dk, void *dv, const int64_t grad_stride, float *dbias, uint64_t row,
                          const Room *r) {
  int64_t T = s->T, Tp = r->T, D = s->D, Dp = r->D;
  int bf16 = s->bf16;
  float scale = 1.0f / sqrtf((float)D);
  if (bf16) {
    fetch(q, s->q[2], T, D, r->q, Tp, Dp, scale, 1);
    fetch(k, s->k[2], T, D, r->k, Tp, Dp, 1, 1);
    fetch(v, s->v[2], T, D, r->v, Tp, Dp, 1, 1);
    fetch(dout, dout_strides[2], T, D, r->dout, Tp, Dp, 1, 1);
  } else {
    fetch(q, s->q[2], T, D, r->q, Tp, Dp, scale, 0);
    fetch(k, s->k[2], T, D, r->k, Tp, Dp, 1, 0);
    fetch(v, s->v[2], T, D, r->v, Tp, Dp, 1, 0);
    fetch(dout, dout_strides[2], T, D, r->dout, Tp, Dp, 1, 0);
  }
  transpose(r->k, Tp, Dp, r->kt);
  transpose(r->v, Tp, Dp, r->vt);
  memset(r->dk, 0, (size_t)(Tp * Dp) * sizeof(float));
  memset(r->dv, 0, (size_t)(Tp * Dp) * sizeof(float));
  uint32_t threshold = threshold_of(s->dropout);
  for (int64_t start = 0; start < T; start += QUERIES) {
    int64_t rows = MIN(QUERIES, T - start), keys = start + rows;
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      scores_of(here, D, r->q + (start + sub) * Dp, Dp, r->kt, Tp, upto, r->p + sub * Tp, Tp);
      scores_of(here, D, r->dout + (start + sub) * Dp, Dp, r->vt, Tp, upto, r->ds + sub * Tp, Tp);
    }
    for (int64_t i = 0; i < rows; i++) {
      float *p = r->p + i * Tp, *ds = r->ds + i * Tp, level = lse[start + i];
      vec product_ = {0};
      for (int64_t d = 0; d < D; d += LANES)
        product_ += load_upto(at(out, (start + i) * s->out[2], bf16), d, D, bf16) *
                    load(r->dout + (start + i) * Dp, d, 0);
      float delta = sum_of(product_);
      uint32_t keys_[2];
      row_keys(s->seed, row * (uint64_t)T + (uint64_t)(start + i), keys_);
      int64_t j = 0;
      for (; j <= start + i; j += LANES) {
        vec x = load(p, j, 0) - level, dp = load(ds, j, 0);
        if (bias) x += load_upto(bias + (start + i) * T, j, T, 0);
        vec e = vexp(x);
        causal(&e, j, start + i, 0);
        vec share = e;
        if (threshold) {
          vec keep = kept(keys_, (uint32_t)j, threshold, 1 / (1 - s->dropout));
          dp *= keep, share *= keep;
        }
        vec change = e * (dp - delta);
        causal(&change, j, start + i, 0);
        store(p, j, share, 0);
        store(ds, j, change, 0);
        if (dbias)
          store_upto(dbias + (start + i) * T, j, T, change + load_upto(dbias + (start + i) * T, j, T, 0), 0);
      }
      for (; j < keys; j += LANES) store(p, j, splat(0), 0), store(ds, j, splat(0), 0);
    }
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub);
      product_by_width(Dp, here, start + sub + here, r->ds + sub * Tp, Tp, 1, r->k, r->tile + sub * Dp, 0);
    }
    product_by_width(Dp, keys, rows, r->ds, 1, Tp, r->q + start * Dp, r->dk, 1);
    product_by_width(Dp, keys, rows, r->p, 1, Tp, r->dout + start * Dp, r->dv, 1);
    for (int64_t i = 0; i < rows * Dp; i += LANES) store(r->tile, i, load(r->tile, i, 0) * scale, 0);
    give(r->tile, Dp, rows, D, at_(dq, start * grad_stride, bf16), grad_stride, bf16);
  }
  give(r->dk, Dp, T, D, dk, grad_stride, bf16);
  give(r->dv, Dp, T, D, dv, grad_stride, bf16);
}

static int64_t padded_length(int64_t T) { return (T + 2 * LANES - 1) / (2 * LANES) * (2 * LANES); }

/* q, k, v (B, H, T, D) -> out; lse (B, H, T). bias, if any, (H or 1, T, T) fp32. Returns 0, or 1 where memory is
 * not to be had. */
EXPORT int attention_forward(const Attention *s, const void *q, const void *k, const void *v, const float *bias,
                             void *out, float *lse) {
  int64_t Tp = padded_length(s->T), Dp = padded_width(s->D), size = room_size(Tp, Dp, 0);
  float *memory = aligned_alloc(64, (size_t)(s->threads * size) * sizeof(float));
  if (!memory) return 1;
#pragma omp parallel for schedule(static) num_threads(s->threads)
  for (int64_t row = 0; row < s->B * s->H; row++) {
    int64_t b = row / s->H, h = row % s->H;
    Room room = room_in(memory + THREAD * size, Tp, Dp, 0);
    int bf16 = s->bf16;
    forward_head(s, at(q, b * s->q[0] + h * s->q[1], bf16), at(k, b * s->k[0] + h * s->k[1], bf16),
                 at(v, b * s->v[0] + h * s->v[1], bf16), bias ? bias + h * s->bias_head : NULL,
                 at_(out, b * s->out[0] + h * s->out[1], bf16), lse + row * s->T, (uint64_t)row, &room);
  }
  free(memory);
  return 0;
}

/* Gradients of the above: dq, dk, dv with strides `grad` of (B, H, T) each; dbias, if asked for,
 * (threads, H or 1, T, T), zeroed, takes each thread's sums. */
EXPORT int attention_backward(const Attention *s, const void *q, const void *k, const void *v,
                              const float *bias, const void *out, const void *dout,
                              const int64_t *dout_strides, const float *lse, void *dq, void *dk, void *dv,
                              const int64_t *grad, float *dbias, int64_t dbias_size) {
  int64_t Tp = padded_length(s->T), Dp = padded_width(s->D), size = room_size(Tp, Dp, 1);
  float *memory = aligned_alloc(64, (size_t)(s->threads * size) * sizeof(float));
  if (!memory) return 1;
#pragma omp parallel for schedule(static) num_threads(s->threads)
  for (int64_t row = 0; row < s->B * s->H; row++) {
    int64_t b = row / s->H, h = row % s->H;
    Room room = room_in(memory + THREAD * size, Tp, Dp, 1);
    int bf16 = s->bf16;
    int64_t to = b * grad[0] + h * grad[1];
    backward_head(s, at(q, b * s->q[0] + h * s->q[1], bf16), at(k, b * s->k[0] + h * s->k[1], bf16),
                  at(v, b * s->v[0] + h * s->v[1], bf16), bias ? bias + h * s->bias_head : NULL,
                  at(out, b * s->out[0] + h * s->out[1], bf16),
                  at(dout, b * dout_strides[0] + h * dout_strides[1], bf16), dout_strides, lse + row * s->T,
                  at_(dq, to, bf16), at_(dk, to, bf16), at_(dv, to, bf16), grad[2],
                  dbias ? dbias + THREAD * dbias_size + h * s->bias_head : NULL, (uint64_t)row, &room);
  }
  free(memory);
  return 0;
}
