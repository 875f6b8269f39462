/* Attention of one head in bf16, with the processor's dot products of pairs: two multiplications a lane.
 *
 * A word is two bf16 numbers that follow one another along the dimension that a product sums over. So each
 * operand is laid out in words twice where it is summed over both ways.
 */
#ifndef GPTKIT_ATTENTION_BF16_H
#define GPTKIT_ATTENTION_BF16_H

#include "attention_fp32.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define HAS_BF16_PRODUCTS 1

typedef uint32_t word;

INLINE word word_at(const void *p, int64_t i) {
  word out;
  memcpy(&out, (const char *)p + 4 * i, 4);
  return out;
}

/* c[m][…] (+)= sum over words k of a(m, k) . b[k][…], as TILE_PRODUCT: a(m, k) = word m am + k ak of a. */
#define WORD_TILE(M, n)                                                                                        \
  static void words_##M##_##n(int64_t rows, int64_t K, const void *a, int64_t am, int64_t ak, const word *b,  \
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
          __m512i left = _mm512_set1_epi32((int)word_at(a, from[m] + k * ak));                                \
          for (int v = 0; v < n; v++)                                                                         \
            sum[m][v] = (vec)_mm512_dpbf16_ps((__m512)sum[m][v], (__m512bh)left, (__m512bh)right[v]);         \
        }                                                                                                     \
      }                                                                                                       \
      for (int m = 0; m < M; m++)                                                                             \
        if (m0 + m < rows)                                                                                    \
          for (int v = 0; v < n; v++) store(c + (m0 + m) * ldc, v * LANES, sum[m][v], 0);                     \
    }                                                                                                         \
  }

WORD_TILE(8, 1)
WORD_TILE(8, 2)
WORD_TILE(8, 3)
WORD_TILE(6, 4)
WORD_TILE(4, 6)
WORD_TILE(3, 8)

static void words_by_width(int64_t Dp, int64_t rows, int64_t K, const void *a, int64_t am, int64_t ak,
                           const word *b, float *c, int add) {
  BY_WIDTH(Dp / LANES, words, rows, K, a, am, ak, b, Dp, c, Dp, add)
}

/* scores[r][j] = x[r] . y[j] over D, from rows of x and the words of y with keys side by side */
INLINE void word_scores(int64_t rows, int64_t D, const uint16_t *x, int64_t ldx, const word *y, int64_t ldy,
                        int64_t keys, float *scores, int64_t lds) {
  for (int64_t j = 0; j < keys; j += 2 * LANES) {
    if (j + LANES < keys)
      words_8_2(rows, D / 2, x, ldx / 2, 1, y + j, ldy, scores + j, lds, 0);
    else
      words_8_1(rows, D / 2, x, ldx / 2, 1, y + j, ldy, scores + j, lds, 0);
  }
}

/* x (T, D) to words along D with rows side by side: (D / 2, Tp) */
static void words_across(const void *x, int64_t stride, int64_t T, int64_t D, word *to, int64_t Tp) {
  for (int64_t t = 0; t < Tp; t += LANES)
    for (int64_t d = 0; d < D / 2; d++)
      for (int64_t i = t; i < t + LANES; i++)
        to[d * Tp + i] = i < T ? word_at((const uint16_t *)x + i * stride, d) : 0;
}

/* x (T, D) to words of two rows: (Tp / 2, Dp) */
static void words_down(const void *x, int64_t stride, int64_t T, int64_t D, word *to, int64_t Tp, int64_t Dp) {
  for (int64_t t = 0; t < Tp; t += 2)
    for (int64_t d = 0; d < Dp; d += LANES) {
      uvec pair = {0}; /* a bf16 number is the upper half of the fp32 number that it stands for */
      if (d < D && t < T) pair = (uvec)load_upto((const uint16_t *)x + t * stride, d, D, 1) >> 16;
      if (d < D && t + 1 < T) pair |= (uvec)load_upto((const uint16_t *)x + (t + 1) * stride, d, D, 1);
      memcpy(to + t / 2 * Dp + d, &pair, sizeof pair);
    }
}

INLINE uvec as_bf16(vec x) {
  return (uvec)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
}

typedef struct {
  int64_t T, D; /* padded */
  word *kt, *vt, *k2, *q2, *v2, *dout2, *p2, *ds2;
  float *dk, *dv, *p, *dp, *tile;
  uint16_t *half;
} Words;

static Words words_in(float *memory, int64_t T, int64_t D) {
  Words r = {.T = T, .D = D};
  word **halves[] = {&r.kt, &r.vt, &r.k2, &r.q2, &r.v2, &r.dout2};
  for (int i = 0; i < 6; i++, memory += T * D / 2) *halves[i] = (word *)memory;
  r.dk = memory, memory += T * D;
  r.dv = memory, memory += T * D;
  r.p = memory, memory += QUERIES * T;
  r.dp = memory, memory += QUERIES * T;
  r.half = (uint16_t *)memory, memory += QUERIES * T / 2;
  r.p2 = (word *)memory, memory += QUERIES * T / 2;
  r.ds2 = (word *)memory, memory += QUERIES * T / 2;
  r.tile = memory;
  return r;
}

static int64_t words_size(int64_t T, int64_t D) { return 5 * T * D + 7 * QUERIES * T / 2 + QUERIES * D; }

static void forward_bf16(const Attention *s, const Head *h, const Words *r) {
  int64_t T = s->T, Tp = r->T, D = s->D, Dp = r->D;
  words_across(h->k, s->k[2], T, D, r->kt, Tp);
  words_down(h->v, s->v[2], T, D, r->v2, Tp, Dp);
  float scale = 1.0f / sqrtf((float)D);
  uint32_t threshold = threshold_of(s->dropout);
  for (int64_t start = 0; start < T; start += QUERIES) {
    int64_t rows = MIN(QUERIES, T - start);
    float inverse[QUERIES];
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      word_scores(here, D, (const uint16_t *)h->q + (start + sub) * s->q[2], s->q[2], r->kt, Tp, upto,
                  r->p + sub * Tp, Tp);
    }
    for (int64_t i = 0; i < rows; i++)
      inverse[i] = softmax_row(s, h, r->p + i * Tp, start + i, start + rows, scale, threshold,
                               r->half + i * Tp, 1);
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      words_by_width(Dp, here, (upto + 1) / 2, r->half + sub * Tp, Tp / 2, 1, r->v2, r->tile + sub * Dp, 0);
    }
    for (int64_t i = 0; i < rows; i++)
      for (int64_t d = 0; d < D; d += LANES)
        store_upto((uint16_t *)h->to + (start + i) * s->out[2], d, D, load(r->tile + i * Dp, d, 0) * inverse[i],
                   1);
  }
}

/* Shares and changes of queries i and i + 1 as words, and changes of each in bf16 */
INLINE void change_pair(const Attention *s, const Head *h, const Words *r, int64_t start, int64_t i,
                        int64_t rows, float scale, uint32_t threshold) {
  int64_t Tp = r->T, keys = start + rows;
  int two = i + 1 < rows;
  Query first = query_of(s, h, start + i, 1), second = first;
  if (two) second = query_of(s, h, start + i + 1, 1);
  float *p = r->p + i * Tp, *dp = r->dp + i * Tp;
  uint16_t *half = r->half + i * Tp;
  word *p2 = r->p2 + i / 2 * Tp, *ds2 = r->ds2 + i / 2 * Tp;
  for (int64_t j = 0; j < keys; j += LANES) {
    uvec shares = {0}, changes = {0};
    vec change = {0}, other = {0};
    if (j <= start + i) {
      shares = as_bf16(share_of(s, h, &first, load(p, j, 0), load(dp, j, 0), j, scale, threshold, &change));
      changes = as_bf16(change);
    }
    if (two && j <= start + i + 1) {
      vec share = share_of(s, h, &second, load(p + Tp, j, 0), load(dp + Tp, j, 0), j, scale, threshold, &other);
      shares |= as_bf16(share) << 16;
      changes |= as_bf16(other) << 16;
    }
    store(half, j, change, 1);
    store(half + Tp, j, other, 1); /* there is room for an even number of queries */
    memcpy(p2 + j, &shares, sizeof shares);
    memcpy(ds2 + j, &changes, sizeof changes);
  }
}

static void backward_bf16(const Attention *s, const Head *h, const Words *r) {
  int64_t T = s->T, Tp = r->T, D = s->D, Dp = r->D;
  words_across(h->k, s->k[2], T, D, r->kt, Tp);
  words_across(h->v, s->v[2], T, D, r->vt, Tp);
  words_down(h->k, s->k[2], T, D, r->k2, Tp, Dp);
  words_down(h->q, s->q[2], T, D, r->q2, Tp, Dp);
  words_down(h->dout, h->dout_stride, T, D, r->dout2, Tp, Dp);
  memset(r->dk, 0, (size_t)(Tp * Dp) * sizeof(float));
  memset(r->dv, 0, (size_t)(Tp * Dp) * sizeof(float));
  float scale = 1.0f / sqrtf((float)D);
  uint32_t threshold = threshold_of(s->dropout);
  for (int64_t start = 0; start < T; start += QUERIES) {
    int64_t rows = MIN(QUERIES, T - start), keys = start + rows, pairs = (rows + 1) / 2;
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      word_scores(here, D, (const uint16_t *)h->q + (start + sub) * s->q[2], s->q[2], r->kt, Tp, upto,
                  r->p + sub * Tp, Tp);
      word_scores(here, D, (const uint16_t *)h->dout + (start + sub) * h->dout_stride, h->dout_stride, r->vt,
                  Tp, upto, r->dp + sub * Tp, Tp);
    }
    for (int64_t i = 0; i < rows; i += 2) change_pair(s, h, r, start, i, rows, scale, threshold);
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      words_by_width(Dp, here, (upto + 1) / 2, r->half + sub * Tp, Tp / 2, 1, r->k2, r->tile + sub * Dp, 0);
    }
    words_by_width(Dp, keys, pairs, r->ds2, 1, Tp, r->q2 + start / 2 * Dp, r->dk, 1);
    words_by_width(Dp, keys, pairs, r->p2, 1, Tp, r->dout2 + start / 2 * Dp, r->dv, 1);
    give(r->tile, Dp, rows, D, (uint16_t *)h->dq + start * h->grad_stride, h->grad_stride, scale, 1);
  }
  give(r->dk, Dp, T, D, h->dk, h->grad_stride, scale, 1);
  give(r->dv, Dp, T, D, h->dv, h->grad_stride, 1, 1);
}

/* Whether rows are whole words: D and every stride even */
static int in_words(const Attention *s, int64_t dout_stride) {
  return s->bf16 && !((s->D | s->q[2] | s->k[2] | s->v[2] | dout_stride) & 1);
}

#else
#define HAS_BF16_PRODUCTS 0
#endif
#endif
