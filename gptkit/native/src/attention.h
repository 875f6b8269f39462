/* Common to attention in fp32 and bf16: the arguments of a call, one head of it, the softmax and its gradient. */
#ifndef GPTKIT_ATTENTION_H
#define GPTKIT_ATTENTION_H

#include "tiles.h"

enum { QUERIES = 32, TILE = 8 }; /* queries per block; queries that are multiplied by the same keys */

typedef struct {
  int64_t B, H, T, D;
  int64_t q[3], k[3], v[3], out[3]; /* strides of (B, H, T) in elements; D is contiguous */
  int64_t bias_head;                /* stride of the bias between heads; 0: one bias for all */
  uint64_t seed;
  float dropout;
  int32_t bf16, threads;
} Attention;

/* One head of one sequence: its part of each tensor */
typedef struct {
  const void *q, *k, *v, *out, *dout;
  const float *bias; /* (T, T), or NULL */
  float *lse, *dbias;
  void *to, *dq, *dk, *dv; /* where output and gradients are stored */
  int64_t dout_stride, grad_stride;
  uint64_t row; /* index of this head in the call, for the seed of its dropout */
} Head;

INLINE void mask_future(vec *x, int64_t j, int64_t i, float ahead) {
  if (j + LANES > i + 1) *x = choose((ivec)(lane_index + (uint32_t)j > (uint32_t)i), splat(ahead), *x);
}

INLINE void dropout_keys(const Attention *s, const Head *h, int64_t i, uint32_t keys[2]) {
  row_keys(s->seed, h->row * (uint64_t)s->T + (uint64_t)i, keys);
}

/* Softmax of the scores of query i, times scale. Stores unnormalized attention weights in `weights`, in bf16 or over
 * the scores, with zeros up to key `keys`; returns the factor that normalizes them. */
INLINE float softmax_row(const Attention *s, const Head *h, float *scores, int64_t i, int64_t keys, float scale,
                         uint32_t threshold, void *weights, int bf16) {
  vec top = splat(-INFINITY), total = {0};
  const float *bias = h->bias ? h->bias + i * s->T : NULL;
  int64_t T = s->T;
  for (int64_t j = 0; j <= i; j += LANES) {
    vec x = load(scores, j, 0) * scale;
    if (bias) x += load_upto(bias, j, T, 0);
    mask_future(&x, j, i, -INFINITY);
    store(scores, j, x, 0);
    top = larger(x, top);
  }
  float most = largest_of(top);
  if (most == -INFINITY) most = 0; /* the bias may mask every key */
  uint32_t random[2];
  if (threshold) dropout_keys(s, h, i, random);
  int64_t j = 0;
  float kept = 1 / (1 - s->dropout);
  for (; j <= i; j += LANES) {
    vec e = vexp(load(scores, j, 0) - most);
    mask_future(&e, j, i, 0);
    total += e;
    if (threshold) e *= dropout_factor(random, (uint32_t)j, threshold, kept);
    store(weights, j, e, bf16);
  }
  for (; j < keys; j += LANES) store(weights, j, splat(0), bf16);
  float sum = sum_of(total);
  h->lse[i] = most + logf(sum);
  return 1 / sum;
}

/* What the gradient of query i needs apart from its scores */
typedef struct {
  int64_t i, T;
  float lse_i, delta; /* log of the sum of exp; out . dout */
  uint32_t random[2];
  float kept;        /* the factor of what dropout keeps */
  const float *bias; /* the query's row, or NULL */
  float *dbias;
} Query;

INLINE Query query_of(const Attention *s, const Head *h, int64_t i, int bf16) {
  vec along = {0};
  for (int64_t d = 0; d < s->D; d += LANES)
    along += load_upto(at(h->out, i * s->out[2], bf16), d, s->D, bf16) *
             load_upto(at(h->dout, i * h->dout_stride, bf16), d, s->D, bf16);
  Query query = {.i = i, .T = s->T, .lse_i = h->lse[i], .delta = sum_of(along), .kept = 1 / (1 - s->dropout)};
  query.bias = h->bias ? h->bias + i * s->T : NULL;
  query.dbias = h->dbias ? h->dbias + i * s->T : NULL;
  dropout_keys(s, h, i, query.random);
  return query;
}

/* For the keys of a vector, from their scores and dp = dout v': returns the attention weights after dropout; stores the
 * gradient of the scores in `dscore` */
INLINE vec attention_weights(const Query *query, vec score, vec dp, int64_t j, float scale, uint32_t threshold,
                             vec *dscore) {
  int64_t i = query->i;
  vec x = score * scale - query->lse_i;
  if (query->bias) x += load_upto(query->bias, j, query->T, 0);
  vec e = vexp(x), weight = e;
  if (threshold) {
    vec factor = dropout_factor(query->random, (uint32_t)j, threshold, query->kept);
    dp *= factor, weight *= factor;
  }
  *dscore = e * (dp - query->delta);
  mask_future(&weight, j, i, 0), mask_future(dscore, j, i, 0);
  if (query->dbias) store_upto(query->dbias, j, query->T, *dscore + load_upto(query->dbias, j, query->T, 0), 0);
  return weight;
}

#endif
