/* Attention of one head in fp32 arithmetic, for tensors in fp32 or bf16. */
#ifndef GPTKIT_ATTENTION_FP32_H
#define GPTKIT_ATTENTION_FP32_H

#include "attention.h"

/* Rows of one head in fp32, `ld` elements apart */
typedef struct {
  const float *p;
  int64_t ld;
} Matrix;

/* Workspace of one thread: rows padded to whole vectors, sequences to whole tiles */
typedef struct {
  int64_t T, D; /* padded */
  float *copies[4], *kt, *vt, *dk, *dv, *p, *ds, *tile;
} Fp32Workspace;

static int64_t fp32_workspace_size(int64_t T, int64_t D, int back) {
  return back ? 8 * T * D + 2 * QUERIES * T + QUERIES * D : 4 * T * D + QUERIES * T + QUERIES * D;
}

static Fp32Workspace fp32_workspace(float *memory, int64_t T, int64_t D, int back) {
  Fp32Workspace r = {.T = T, .D = D};
  float **all[] = {&r.copies[0], &r.copies[1], &r.copies[2], &r.kt, &r.copies[3], &r.vt, &r.dk, &r.dv};
  for (int i = 0; i < (back ? 8 : 4); i++, memory += T * D) *all[i] = memory;
  r.p = memory, memory += QUERIES * T;
  if (back) r.ds = memory, memory += QUERIES * T;
  r.tile = memory;
  return r;
}

/* The rows of a tensor (T, D) as they are, if they are in fp32 and need no padding; else copied */
static Matrix matrix_of(const Attention *s, const Fp32Workspace *r, const void *x, int64_t stride, int copy) {
  if (!s->bf16 && s->D == r->D) return (Matrix){x, stride};
  float *to = r->copies[copy];
  for (int64_t t = 0; t < s->T; t++)
    for (int64_t d = 0; d < r->D; d += LANES)
      store(to + t * r->D, d, load_upto(at(x, t * stride, s->bf16), d, s->D, s->bf16), 0);
  return (Matrix){to, r->D};
}

/* Stores padded rows x (T, Dp), times scale, in a tensor */
static void store_rows(const float *x, int64_t Dp, int64_t T, int64_t D, void *to, int64_t stride, float scale,
                 int bf16) {
  for (int64_t t = 0; t < T; t++)
    for (int64_t d = 0; d < D; d += LANES)
      store_upto(at_(to, t * stride, bf16), d, D, load(x + t * Dp, d, 0) * scale, bf16);
}

/* Queries of a block that are multiplied by the keys of the block together. A row of weights is 0 from its query on up
 * to the end of its tile. */
enum { DIAGONAL = LANES == 16 ? QUERIES : TILE };

static int64_t end_of_tile(int64_t i, int64_t rows) { return MIN((i / DIAGONAL + 1) * DIAGONAL, rows); }

/* sums (keys, D) += w' x for a block of queries: w (rows, keys) are attention weights or their gradients, 0 for keys after
 * the tile of the query, and x (rows, D) belongs to the queries */
static void add_by_key(const Fp32Workspace *r, const float *w, Matrix x, int64_t start, int64_t rows, float *sums) {
  const float *first = x.p + start * x.ld;
  product_by_width(r->D, start, rows, w, 1, r->T, first, x.ld, sums, 1);
  for (int64_t sub = 0; sub < rows; sub += DIAGONAL)
    product_by_width(r->D, MIN(DIAGONAL, rows - sub), rows - sub, w + start + sub + sub * r->T, 1, r->T,
                     first + sub * x.ld, x.ld, sums + (start + sub) * r->D, 1);
}

static void forward_fp32(const Attention *s, const Head *h, const Fp32Workspace *r) {
  int64_t T = s->T, Tp = r->T, D = s->D, Dp = r->D;
  int bf16 = s->bf16;
  Matrix q = matrix_of(s, r, h->q, s->q[2], 0), k = matrix_of(s, r, h->k, s->k[2], 1);
  Matrix v = matrix_of(s, r, h->v, s->v[2], 2);
  transpose(k.p, k.ld, T, Tp, Dp, r->kt);
  float scale = 1.0f / sqrtf((float)D);
  uint32_t threshold = dropout_threshold(s->dropout);
  for (int64_t start = 0; start < T; start += QUERIES) {
    int64_t rows = MIN(QUERIES, T - start);
    float inverse[QUERIES];
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      product_of_columns(upto, here, D, q.p + (start + sub) * q.ld, q.ld, r->kt, Tp, r->p + sub * Tp, Tp);
    }
    for (int64_t i = 0; i < rows; i++) {
      float *p = r->p + i * Tp;
      inverse[i] = softmax_row(s, h, p, start + i, start + end_of_tile(i, rows), scale, threshold, p, 0);
    }
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      product_by_width(Dp, here, upto, r->p + sub * Tp, Tp, 1, v.p, v.ld, r->tile + sub * Dp, 0);
    }
    for (int64_t i = 0; i < rows; i++)
      for (int64_t d = 0; d < D; d += LANES)
        store_upto(at_(h->to, (start + i) * s->out[2], bf16), d, D, load(r->tile + i * Dp, d, 0) * inverse[i],
                   bf16);
  }
}

/* With ds = weight (dp - delta), the gradient of the scaled scores: dq = scale ds k, dk = scale ds' q. */
static void backward_fp32(const Attention *s, const Head *h, const Fp32Workspace *r) {
  int64_t T = s->T, Tp = r->T, D = s->D, Dp = r->D;
  int bf16 = s->bf16;
  Matrix q = matrix_of(s, r, h->q, s->q[2], 0), k = matrix_of(s, r, h->k, s->k[2], 1);
  Matrix v = matrix_of(s, r, h->v, s->v[2], 2), dout = matrix_of(s, r, h->dout, h->dout_stride, 3);
  transpose(k.p, k.ld, T, Tp, Dp, r->kt);
  transpose(v.p, v.ld, T, Tp, Dp, r->vt);
  memset(r->dk, 0, (size_t)(Tp * Dp) * sizeof(float));
  memset(r->dv, 0, (size_t)(Tp * Dp) * sizeof(float));
  float scale = 1.0f / sqrtf((float)D);
  uint32_t threshold = dropout_threshold(s->dropout);
  for (int64_t start = 0; start < T; start += QUERIES) {
    int64_t rows = MIN(QUERIES, T - start);
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here, first = start + sub;
      product_of_columns(upto, here, D, q.p + first * q.ld, q.ld, r->kt, Tp, r->p + sub * Tp, Tp);
      product_of_columns(upto, here, D, dout.p + first * dout.ld, dout.ld, r->vt, Tp, r->ds + sub * Tp, Tp);
    }
    for (int64_t i = 0; i < rows; i++) {
      float *p = r->p + i * Tp, *ds = r->ds + i * Tp;
      Query query = query_of(s, h, start + i, bf16);
      int64_t j = 0, end = start + end_of_tile(i, rows);
      for (; j <= start + i; j += LANES) {
        vec dscore;
        store(p, j, attention_weights(&query, load(p, j, 0), load(ds, j, 0), j, scale, threshold, &dscore), 0);
        store(ds, j, dscore, 0);
      }
      for (; j < end; j += LANES) store(p, j, splat(0), 0), store(ds, j, splat(0), 0);
    }
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      product_by_width(Dp, here, upto, r->ds + sub * Tp, Tp, 1, k.p, k.ld, r->tile + sub * Dp, 0);
    }
    add_by_key(r, r->ds, q, start, rows, r->dk);
    add_by_key(r, r->p, dout, start, rows, r->dv);
    store_rows(r->tile, Dp, rows, D, at_(h->dq, start * h->grad_stride, bf16), h->grad_stride, scale, bf16);
  }
  store_rows(r->dk, Dp, T, D, h->dk, h->grad_stride, scale, bf16);
  store_rows(r->dv, Dp, T, D, h->dv, h->grad_stride, 1, bf16);
}

#endif
