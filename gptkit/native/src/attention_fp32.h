/* Attention of one head in fp32 arithmetic, for tensors in fp32 or bf16. */
#ifndef GPTKIT_ATTENTION_FP32_H
#define GPTKIT_ATTENTION_FP32_H

#include "attention.h"

/* Workspace of one thread: rows padded to whole vectors, sequences to whole tiles */
typedef struct {
  int64_t T, D; /* padded */
  float *q, *k, *kt, *v, *vt, *dout, *dk, *dv, *p, *ds, *tile;
} Fp32Workspace;

static int64_t fp32_workspace_size(int64_t T, int64_t D, int back) {
  return back ? 8 * T * D + 2 * QUERIES * T + QUERIES * D : 4 * T * D + QUERIES * T + QUERIES * D;
}

static Fp32Workspace fp32_workspace(float *memory, int64_t T, int64_t D, int back) {
  Fp32Workspace r = {.T = T, .D = D};
  float **all[] = {&r.q, &r.kt, &r.v, &r.k, &r.vt, &r.dout, &r.dk, &r.dv};
  for (int i = 0; i < (back ? 8 : 4); i++, memory += T * D) *all[i] = memory;
  r.p = memory, memory += QUERIES * T;
  if (back) r.ds = memory, memory += QUERIES * T;
  r.tile = memory;
  return r;
}

/* Rows of a tensor as fp32, padded with zeros to (Tp, Dp) */
static void load_rows(const void *x, int64_t stride, int64_t T, int64_t D, float *to, int64_t Tp, int64_t Dp,
                  int bf16) {
  for (int64_t t = 0; t < T; t++)
    for (int64_t d = 0; d < Dp; d += LANES) {
      vec row = d < D ? load_upto(at(x, t * stride, bf16), d, D, bf16) : splat(0);
      store(to + t * Dp, d, row, 0);
    }
  memset(to + T * Dp, 0, (size_t)((Tp - T) * Dp) * sizeof(float));
}

/* Stores padded rows x (T, Dp), times scale, in a tensor */
static void store_rows(const float *x, int64_t Dp, int64_t T, int64_t D, void *to, int64_t stride, float scale,
                 int bf16) {
  for (int64_t t = 0; t < T; t++)
    for (int64_t d = 0; d < D; d += LANES)
      store_upto(at_(to, t * stride, bf16), d, D, load(x + t * Dp, d, 0) * scale, bf16);
}

/* Loads q, k, v and the transpose of k */
static void load_head(const Attention *s, const Head *h, const Fp32Workspace *r) {
  load_rows(h->q, s->q[2], s->T, s->D, r->q, r->T, r->D, s->bf16);
  load_rows(h->k, s->k[2], s->T, s->D, r->k, r->T, r->D, s->bf16);
  load_rows(h->v, s->v[2], s->T, s->D, r->v, r->T, r->D, s->bf16);
  transpose(r->k, r->T, r->D, r->kt);
}

static void forward_fp32(const Attention *s, const Head *h, const Fp32Workspace *r) {
  int64_t T = s->T, Tp = r->T, D = s->D, Dp = r->D;
  int bf16 = s->bf16;
  load_head(s, h, r);
  float scale = 1.0f / sqrtf((float)D);
  uint32_t threshold = dropout_threshold(s->dropout);
  for (int64_t start = 0; start < T; start += QUERIES) {
    int64_t rows = MIN(QUERIES, T - start);
    float inverse[QUERIES];
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      product_of_columns(upto, here, D, r->q + (start + sub) * Dp, Dp, r->kt, Tp, r->p + sub * Tp, Tp);
    }
    for (int64_t i = 0; i < rows; i++) {
      float *p = r->p + i * Tp;
      inverse[i] = softmax_row(s, h, p, start + i, start + rows, scale, threshold, p, 0);
    }
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      product_by_width(Dp, here, upto, r->p + sub * Tp, Tp, 1, r->v, r->tile + sub * Dp, 0);
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
  load_head(s, h, r);
  load_rows(h->dout, h->dout_stride, T, D, r->dout, Tp, Dp, bf16);
  transpose(r->v, Tp, Dp, r->vt);
  memset(r->dk, 0, (size_t)(Tp * Dp) * sizeof(float));
  memset(r->dv, 0, (size_t)(Tp * Dp) * sizeof(float));
  float scale = 1.0f / sqrtf((float)D);
  uint32_t threshold = dropout_threshold(s->dropout);
  for (int64_t start = 0; start < T; start += QUERIES) {
    int64_t rows = MIN(QUERIES, T - start), keys = start + rows;
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      product_of_columns(upto, here, D, r->q + (start + sub) * Dp, Dp, r->kt, Tp, r->p + sub * Tp, Tp);
      product_of_columns(upto, here, D, r->dout + (start + sub) * Dp, Dp, r->vt, Tp, r->ds + sub * Tp, Tp);
    }
    for (int64_t i = 0; i < rows; i++) {
      float *p = r->p + i * Tp, *ds = r->ds + i * Tp;
      Query query = query_of(s, h, start + i, bf16);
      int64_t j = 0;
      for (; j <= start + i; j += LANES) {
        vec dscore;
        store(p, j, attention_weights(s, h, &query, load(p, j, 0), load(ds, j, 0), j, scale, threshold, &dscore), 0);
        store(ds, j, dscore, 0);
      }
      for (; j < keys; j += LANES) store(p, j, splat(0), 0), store(ds, j, splat(0), 0);
    }
    for (int64_t sub = 0; sub < rows; sub += TILE) {
      int64_t here = MIN(TILE, rows - sub), upto = start + sub + here;
      product_by_width(Dp, here, upto, r->ds + sub * Tp, Tp, 1, r->k, r->tile + sub * Dp, 0);
    }
    product_by_width(Dp, keys, rows, r->ds, 1, Tp, r->q + start * Dp, r->dk, 1);
    product_by_width(Dp, keys, rows, r->p, 1, Tp, r->dout + start * Dp, r->dv, 1);
    store_rows(r->tile, Dp, rows, D, at_(h->dq, start * h->grad_stride, bf16), h->grad_stride, scale, bf16);
  }
  store_rows(r->dk, Dp, T, D, h->dk, h->grad_stride, scale, bf16);
  store_rows(r->dv, Dp, T, D, h->dv, h->grad_stride, 1, bf16);
}

#endif
