/* Causal attention, forward and backward, one head of one sequence at a time in the cache of one processor.
 *
 * The scores of all queries are never stored: a block of queries attends to the keys up to its end, and the backward
 * pass recomputes the scores from q, k and the log of the sum of exp (Dao et al. 2022). Products are in tiles that
 * stay in registers. Keys after a block are not read.
 */
#include "attention_bf16.h"
#include "operations.h"

/* Whether this processor has dot products of bf16 pairs, which block.c and muon.c need */
EXPORT int has_bf16_products(void) { return HAS_BF16_PRODUCTS; }

/* Whole tiles of keys, of 32 with AVX-512 and 16 otherwise */
static int64_t padded_length(int64_t T) {
  int64_t tile = MAX(2 * LANES, 16);
  return (T + tile - 1) / tile * tile;
}

static Head head_of(const Attention *s, int64_t row, const void *q, const void *k, const void *v,
                    const float *bias, float *lse) {
  int64_t b = row / s->H, h = row % s->H;
  return (Head){
      .q = at(q, b * s->q[0] + h * s->q[1], s->bf16),
      .k = at(k, b * s->k[0] + h * s->k[1], s->bf16),
      .v = at(v, b * s->v[0] + h * s->v[1], s->bf16),
      .bias = bias ? bias + h * s->bias_head : NULL,
      .lse = lse + row * s->T,
      .row = (uint64_t)row,
  };
}

/* All heads, distributed over threads: gradients if dout is not NULL. dbias_size: elements of each thread's dbias */
static int attend_heads(const Attention *s, const void *q, const void *k, const void *v, const float *bias,
                        float *lse, void *out, const void *dout, const int64_t *dout_strides, void *dq, void *dk,
                        void *dv, const int64_t *grad, float *dbias, int64_t dbias_size) {
  int64_t Tp = padded_length(s->T), Dp = padded_width(s->D), size = fp32_workspace_size(Tp, Dp, dout != NULL);
#if HAS_BF16_PRODUCTS
  int use_pairs = rows_are_pairs(s, dout ? dout_strides[2] : 0);
  if (use_pairs) size = bf16_workspace_size(Tp, Dp);
#endif
  int threads = (int)MIN(s->threads, s->B * s->H);
  float *memory = aligned_alloc(64, (size_t)((threads * size + 15) / 16 * 16) * sizeof(float));
  if (!memory) return 1;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < s->B * s->H; row++) {
    int64_t b = row / s->H, h = row % s->H;
    float *workspace = memory + THREAD * size;
    Head head = head_of(s, row, q, k, v, bias, lse);
    head.out = head.to = at_(out, b * s->out[0] + h * s->out[1], s->bf16);
    if (dout) {
      int64_t to = b * grad[0] + h * grad[1];
      head.dout = at(dout, b * dout_strides[0] + h * dout_strides[1], s->bf16);
      head.dout_stride = dout_strides[2];
      head.dq = at_(dq, to, s->bf16), head.dk = at_(dk, to, s->bf16), head.dv = at_(dv, to, s->bf16);
      head.grad_stride = grad[2];
      head.dbias = dbias ? dbias + THREAD * dbias_size + h * s->bias_head : NULL;
    }
#if HAS_BF16_PRODUCTS
    if (use_pairs) {
      Bf16Workspace w = bf16_workspace(workspace, Tp, Dp);
      if (dout)
        backward_bf16(s, &head, &w);
      else
        forward_bf16(s, &head, &w);
      continue;
    }
#endif
    Fp32Workspace r = fp32_workspace(workspace, Tp, Dp, dout != NULL);
    if (dout)
      backward_fp32(s, &head, &r);
    else
      forward_fp32(s, &head, &r);
  }
  free(memory);
  return 0;
}

/* q, k, v (B, H, T, D) -> out; lse (B, H, T): log of the sum of exp. bias (H or 1, T, T) fp32, or NULL. Returns 0,
 * or 1 if memory cannot be allocated. */
EXPORT int attention_forward(const Attention *s, const void *q, const void *k, const void *v, const float *bias,
                             void *out, float *lse) {
  return attend_heads(s, q, k, v, bias, lse, out, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0);
}

/* Gradients: dq, dk, dv with strides `grad` of (B, H, T) each. dbias (threads, H or 1, T, T), zeroed, or NULL: each
 * thread adds to its own. */
EXPORT int attention_backward(const Attention *s, const void *q, const void *k, const void *v,
                              const float *bias, void *out, const void *dout, const int64_t *dout_strides,
                              float *lse, void *dq, void *dk, void *dv, const int64_t *grad, float *dbias,
                              int64_t dbias_size) {
  return attend_heads(s, q, k, v, bias, lse, out, dout, dout_strides, dq, dk, dv, grad, dbias, dbias_size);
}
