/* Attention of one head in bf16, with the processor's dot products of bf16 pairs: two multiplications per lane.
 *
 * A pair is two bf16 numbers that are adjacent in the dimension that a product sums over, packed in 32 bits. So an
 * operand is packed twice if products sum over both of its dimensions.
 */
#ifndef GPTKIT_ATTENTION_BF16_H
#define GPTKIT_ATTENTION_BF16_H

#include "attention_fp32.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define HAS_BF16_PRODUCTS 1

typedef uint32_t pair;

INLINE pair load_pair(const void *p, int64_t i) {
  pair out;
  memcpy(&out, (const char *)p + 4 * i, 4);
  return out;
}

/* c[m][…] (+)= sum over pairs k of a(m, k) . b[k][…], as TILE_PRODUCT: a(m, k) = pair m am + k ak of a. */
#define PAIR_TILE(M, n)                                                                                        \
  static void pair_product_##M##_##n(int64_t rows, int64_t K, const void *a, int64_t am, int64_t ak, const pair *b,  \
                              int64_t ldb, float *c, int64_t ldc, int add) {                                  \
    for (int64_t m0 = 0; m0 < rows; m0 += M) {                                                                \
      vec sum[M][n];                                                                                          \
      int64_t from[M];                                                                                        \
      for (int m = 0; m < M; m++) {                                                                           \
        int64_t row = MIN(m0 + m, rows - 1);                                                                  \
        from[m] = row * am;                                                                                   \
        for (int v = 0; v < n; v++) sum[m][v] = add ? load(c + row * ldc, v * LANES, 0) : splat(0);           \
      }                                                                                                       \
      for (int64_t k = 0; k < K; k++) {                                                                       \
        __m512i right[n];                                                                                     \
        for (int v = 0; v < n; v++) right[v] = _mm512_loadu_si512(b + k * ldb + v * LANES);                   \
        for (int m = 0; m < M; m++) {                                                                         \
          __m512i left = _mm512_set1_epi32((int)load_pair(a, from[m] + k * ak));                                \
          for (int v = 0; v < n; v++)                                                                         \
            sum[m][v] = (vec)_mm512_dpbf16_ps((__m512)sum[m][v], (__m512bh)left, (__m512bh)right[v]);         \
        }                                                                                                     \
      }                                                                                                       \
      for (int m = 0; m < M; m++)                                                                             \
        if (m0 + m < rows)                                                                                    \
          for (int v = 0; v < n; v++) store(c + (m0 + m) * ldc, v * LANES, sum[m][v], 0);                     \
    }                                                                                                         \
  }

PAIR_TILE(8, 1)
PAIR_TILE(8, 2)
PAIR_TILE(8, 3)
PAIR_TILE(6, 4)
PAIR_TILE(4, 6)
PAIR_TILE(3, 8)

static void pair_product_by_width(int64_t Dp, int64_t rows, int64_t K, const void *a, int64_t am, int64_t ak,
                           const pair *b, float *c, int add) {
  BY_WIDTH(Dp / LANES, pair_product, rows, K, a, am, ak, b, Dp, c, Dp, add)
}

/* scores[r][j] = x[r] . y[j] over D, from rows of x and pairs of y (D / 2, keys) */
INLINE void pair_scores(int64_t rows, int64_t D, const uint16_t *x, int64_t ldx, const pair *y, int64_t ldy,
                        int64_t keys, float *scores, int64_t lds) {
  for (int64_t j = 0; j < keys; j += 2 * LANES) {
    if (j + LANES < keys)
      pair_product_8_2(rows, D / 2, x, ldx / 2, 1, y + j, ldy, scores + j, lds, 0);
    else
      pair_product_8_1(rows, D / 2, x, ldx / 2, 1, y + j, ldy, scores + j, lds, 0);
  }
}

/* x (T, D) to pairs along D, transposed: (D / 2, Tp) */
static void pack_d(const void *x, int64_t stride, int64_t T, int64_t D, pair *to, int64_t Tp) {
  if (D % 8 == 0) { /* the pairs of four rows at a time, moved as floats */
    transpose(x, stride / 2, T, Tp, D / 2, (float *)to);
    return;
  }
  for (int64_t t = 0; t < Tp; t += LANES)
    for (int64_t d = 0; d < D / 2; d++)
      for (int64_t i = t; i < t + LANES; i++)
        to[d * Tp + i] = i < T ? load_pair((const uint16_t *)x + i * stride, d) : 0;
}

/* x (T, D) to pairs along T: (Tp / 2, Dp) */
static void pack_t(const void *x, int64_t stride, int64_t T, int64_t D, pair *to, int64_t Tp, int64_t Dp) {
  for (int64_t t = 0; t < Tp; t += 2)
    for (int64_t d = 0; d < Dp; d += LANES) {
      uvec packed = {0}; /* a bf16 number is the upper half of the same number in fp32 */
      if (d < D && t < T) packed = (uvec)load_upto((const uint16_t *)x + t * stride, d, D, 1) >> 16;
      if (d < D && t + 1 < T) packed |= (uvec)load_upto((const uint16_t *)x + (t + 1) * stride, d, D, 1);
      memcpy(to + t / 2 * Dp + d, &packed, sizeof packed);
    }
}

INLINE uvec as_bf16(vec x) {
  return (uvec)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
}

typedef struct {
  int64_t T, D; /* padded */
  pair *kt, *vt, *k2, *q2, *v2, *dout2, *p2, *ds2;
  float *dk, *dv, *p, *dp, *tile;
  uint16_t *half;
} Bf16Workspace;

static Bf16Workspace bf16_workspace(float *memory, int64_t T, int64_t D) {
  Bf16Workspace r = {.T = T, .D = D};
  pair **halves[] = {&r.kt, &r.vt, &r.k2, &r.q2, &r.v2, &r.dout2};
  for (int i = 0; i < 6; i++, memory += T * D / 2) *halves[i] = (pair *)memory;
  r.dk = memory, memory += T * D;
  r.dv = memory, memory += T * D;
  r.p = memory, memory += QUERIES * T;
  r.dp = memory, memory += QUERIES * T;
  r.half = (uint16_t *)memory, memory += QUERIES * T / 2;
  r.p2 = (pair *)memory, memory += QUERIES * T / 2;
  r.ds2 = (pair *)memory, memory += QUERIES * T / 2;
  r.tile = memory;
  return r;
}

static int64_t bf16_workspace_size(int64_t T, int64_t D) { return 5 * T * D + 7 * QUERIES * T / 2 + QUERIES * D; }

static void forward_bf16(const Attention *s, const Head *h, const Bf16Workspace *r) {
  int64_t T = s->T, Tp = r->T, D = s->D, Dp = r->D;
  pack_d(h->k, s->k[2], T, D, r->kt, Tp);
  pack_t(h->v, s->v[2], T, D, r->v2, Tp, Dp);
  float scale = 1.0f / sqrtf((float)D);
  uint32_t threshold = dropout_threshold(s->dropout);
  for (int64_t start = 0; start < T; start += QUERIES) {
    int64_t rows = MIN(QUERIES, T - start);
    float inverse[QUERIES];
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      pair_scores(here, D, (const uint16_t *)h->q + (start + sub) * s->q[2], s->q[2], r->kt, Tp, upto,
                  r->p + sub * Tp, Tp);
    }
    for (int64_t i = 0; i < rows; i++)
      inverse[i] = softmax_row(s, h, r->p + i * Tp, start + i, start + rows, scale, threshold,
                               r->half + i * Tp, 1);
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      pair_product_by_width(Dp, here, (upto + 1) / 2, r->half + sub * Tp, Tp / 2, 1, r->v2, r->tile + sub * Dp, 0);
    }
    for (int64_t i = 0; i < rows; i++)
      for (int64_t d = 0; d < D; d += LANES)
        store_upto((uint16_t *)h->to + (start + i) * s->out[2], d, D, load(r->tile + i * Dp, d, 0) * inverse[i],
                   1);
  }
}

/* Queries i and i + 1: stores pairs of their attention weights and of their score gradients, and each score gradient
 * in bf16 */
INLINE void dscore_pair(const Attention *s, const Head *h, const Bf16Workspace *r, int64_t start, int64_t i,
                        int64_t rows, float scale, uint32_t threshold) {
  int64_t Tp = r->T, keys = start + rows;
  int two = i + 1 < rows;
  Query first = query_of(s, h, start + i, 1), second = first;
  if (two) second = query_of(s, h, start + i + 1, 1);
  float *p = r->p + i * Tp, *dp = r->dp + i * Tp;
  uint16_t *half = r->half + i * Tp;
  pair *p2 = r->p2 + i / 2 * Tp, *ds2 = r->ds2 + i / 2 * Tp;
  for (int64_t j = 0; j < keys; j += LANES) {
    uvec weights = {0}, dscores = {0};
    vec dscore = {0}, dscore2 = {0};
    if (j <= start + i) {
      weights = as_bf16(attention_weights(&first, load(p, j, 0), load(dp, j, 0), j, scale, threshold, &dscore));
      dscores = as_bf16(dscore);
    }
    if (two && j <= start + i + 1) {
      vec weight = attention_weights(&second, load(p + Tp, j, 0), load(dp + Tp, j, 0), j, scale, threshold,
                                     &dscore2);
      weights |= as_bf16(weight) << 16;
      dscores |= as_bf16(dscore2) << 16;
    }
    store(half, j, dscore, 1);
    store(half + Tp, j, dscore2, 1); /* the workspace holds an even number of queries */
    memcpy(p2 + j, &weights, sizeof weights);
    memcpy(ds2 + j, &dscores, sizeof dscores);
  }
}

static void backward_bf16(const Attention *s, const Head *h, const Bf16Workspace *r) {
  int64_t T = s->T, Tp = r->T, D = s->D, Dp = r->D;
  pack_d(h->k, s->k[2], T, D, r->kt, Tp);
  pack_d(h->v, s->v[2], T, D, r->vt, Tp);
  pack_t(h->k, s->k[2], T, D, r->k2, Tp, Dp);
  pack_t(h->q, s->q[2], T, D, r->q2, Tp, Dp);
  pack_t(h->dout, h->dout_stride, T, D, r->dout2, Tp, Dp);
  memset(r->dk, 0, (size_t)(Tp * Dp) * sizeof(float));
  memset(r->dv, 0, (size_t)(Tp * Dp) * sizeof(float));
  float scale = 1.0f / sqrtf((float)D);
  uint32_t threshold = dropout_threshold(s->dropout);
  for (int64_t start = 0; start < T; start += QUERIES) {
    int64_t rows = MIN(QUERIES, T - start), keys = start + rows, pairs = (rows + 1) / 2;
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      pair_scores(here, D, (const uint16_t *)h->q + (start + sub) * s->q[2], s->q[2], r->kt, Tp, upto,
                  r->p + sub * Tp, Tp);
      pair_scores(here, D, (const uint16_t *)h->dout + (start + sub) * h->dout_stride, h->dout_stride, r->vt,
                  Tp, upto, r->dp + sub * Tp, Tp);
    }
    for (int64_t i = 0; i < rows; i += 2) dscore_pair(s, h, r, start, i, rows, scale, threshold);
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      pair_product_by_width(Dp, here, (upto + 1) / 2, r->half + sub * Tp, Tp / 2, 1, r->k2, r->tile + sub * Dp, 0);
    }
    pair_product_by_width(Dp, keys, pairs, r->ds2, 1, Tp, r->q2 + start / 2 * Dp, r->dk, 1);
    pair_product_by_width(Dp, keys, pairs, r->p2, 1, Tp, r->dout2 + start / 2 * Dp, r->dv, 1);
    store_rows(r->tile, Dp, rows, D, (uint16_t *)h->dq + start * h->grad_stride, h->grad_stride, scale, 1);
  }
  store_rows(r->dk, Dp, T, D, h->dk, h->grad_stride, scale, 1);
  store_rows(r->dv, Dp, T, D, h->dv, h->grad_stride, 1, 1);
}

/* Whether rows are whole pairs: D and all strides are even */
static int rows_are_pairs(const Attention *s, int64_t dout_stride) {
  return s->bf16 && !((s->D | s->q[2] | s->k[2] | s->v[2] | dout_stride) & 1);
}

#else
#define HAS_BF16_PRODUCTS 0
#endif
#endif
