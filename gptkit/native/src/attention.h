/* What both ways of attention share: the shape of a call, one head of it, and the softmax with its gradient. */
#ifndef GPTKIT_ATTENTION_H
#define GPTKIT_ATTENTION_H

#include "tiles.h"

enum { QUERIES = 32, TILE = 8 }; /* queries of a block, and of a part of it that shares what is ahead */

typedef struct {
  int64_t B, H, T, D;
  int64_t q[3], k[3], v[3], out[3]; /* strides of (B, H, T) in elements; D lies together */
  int64_t bias_head;                /* stride of the bias from head to head; 0: one for all */
  uint64_t seed;
  float dropout;
  int32_t bf16, threads;
} Attention;

/* One head of one sequence: its part of every tensor */
typedef struct {
  const void *q, *k, *v, *out, *dout;
  const float *bias; /* (T, T), or NULL */
  float *lse, *dbias;
  void *to, *dq, *dk, *dv; /* written: the output, the gradients */
  int64_t dout_stride, grad_stride;
  uint64_t row; /* number of this head in the call: seeds its dropout */
} Head;

INLINE void causal(vec *x, int64_t j, int64_t i, float ahead) {
  if (j + LANES > i + 1) *x = choose((ivec)(counting + (uint32_t)j > (uint32_t)i), splat(ahead), *x);
}

INLINE void dropout_keys(const Attention *s, const Head *h, int64_t i, uint32_t keys[2]) {
  row_keys(s->seed, h->row * (uint64_t)s->T + (uint64_t)i, keys);
}

/* Scores of query i, times scale, to shares that add up to the inverse of what is returned. They go to
 * `shares`, in bf16 or over the scores, with zeros up to key `keys`. */
INLINE float softmax_row(const Attention *s, const Head *h, float *scores, int64_t i, int64_t keys, float scale,
                         uint32_t threshold, void *shares, int bf16) {
  vec top = splat(-INFINITY), total = {0};
  for (int64_t j = 0; j <= i; j += LANES) {
    vec x = load(scores, j, 0) * scale;
    if (h->bias) x += load_upto(h->bias + i * s->T, j, s->T, 0);
    causal(&x, j, i, -INFINITY);
    store(scores, j, x, 0);
    top = larger(x, top);
  }
  float most = largest_of(top);
  if (most == -INFINITY) most = 0; /* a bias may shut out all */
  uint32_t random[2];
  dropout_keys(s, h, i, random);
  int64_t j = 0;
  for (; j <= i; j += LANES) {
    vec e = vexp(load(scores, j, 0) - most);
    causal(&e, j, i, 0);
    total += e;
    if (threshold) e *= kept(random, (uint32_t)j, threshold, 1 / (1 - s->dropout));
    store(shares, j, e, bf16);
  }
  for (; j < keys; j += LANES) store(shares, j, splat(0), bf16);
  float sum = sum_of(total);
  h->lse[i] = most + logf(sum);
  return 1 / sum;
}

/* What the gradient of query i needs beside its scores */
typedef struct {
  int64_t i;
  float level, delta; /* log of the sum; out . dout */
  uint32_t random[2];
} Query;

INLINE Query query_of(const Attention *s, const Head *h, int64_t i, int bf16) {
  vec along = {0};
  for (int64_t d = 0; d < s->D; d += LANES)
    along += load_upto(at(h->out, i * s->out[2], bf16), d, s->D, bf16) *
             load_upto(at(h->dout, i * h->dout_stride, bf16), d, s->D, bf16);
  Query query = {.i = i, .level = h->lse[i], .delta = sum_of(along)};
  dropout_keys(s, h, i, query.random);
  return query;
}

/* From scores and dp = dout v' of sixteen keys: their shares (after dropout) and the gradient of the scores */
INLINE vec share_of(const Attention *s, const Head *h, const Query *query, vec score, vec dp, int64_t j,
                    float scale, uint32_t threshold, vec *change) {
  int64_t i = query->i;
  vec x = score * scale - query->level;
  if (h->bias) x += load_upto(h->bias + i * s->T, j, s->T, 0);
  vec e = vexp(x), share = e;
  if (threshold) {
    vec keep = kept(query->random, (uint32_t)j, threshold, 1 / (1 - s->dropout));
    dp *= keep, share *= keep;
  }
  *change = e * (dp - query->delta);
  causal(&share, j, i, 0), causal(change, j, i, 0);
  if (h->dbias) {
    float *to = h->dbias + i * s->T;
    store_upto(to, j, s->T, *change + load_upto(to, j, s->T, 0), 0);
  }
  return share;
}

#endif
