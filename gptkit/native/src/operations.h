/* Functions that files of the library call from one another. */
#ifndef GPTKIT_OPERATIONS_H
#define GPTKIT_OPERATIONS_H

#include "attention.h"

/* Rows of C elements, in three dimensions */
typedef struct {
  int64_t outer, middle, inner, C;
} Rows;

EXPORT void norm_forward(const void *x, const int64_t *strides, const Rows *n, const void *weight, const void *bias,
                         void *y, float *stats, float eps, int centered, int bf16, int threads);
EXPORT int norm_backward(const void *x, const int64_t *strides, const void *dy, const int64_t *dy_strides,
                         const Rows *n, const void *weight, const float *stats, const void *add, void *dx,
                         const int64_t *dx_strides, void *dgain, void *dbias, int centered, int bf16, int threads);
EXPORT void rotate(const void *x, const int64_t *strides, const Rows *n, const float *cosine, const float *sine,
                   void *y, const int64_t *y_strides, int inverse, int bf16, int threads);
EXPORT void activation(int kind, const void *h, const void *dy, void *out, int64_t n, int bf16, int threads);
EXPORT void gated(const void *h, const void *dy, void *out, int64_t rows, int64_t F, int bf16, int threads);
EXPORT void dropout(const void *x, const void *add, void *y, int64_t n, float p, uint64_t seed, int bf16,
                    int threads);
EXPORT int64_t cross_entropy(const void *logits, const int64_t *targets, float *losses, void *dlogits, int64_t rows,
                             int64_t V, float weight, int bf16, int threads);
EXPORT int attention_forward(const Attention *s, const void *q, const void *k, const void *v, const float *bias,
                             void *out, float *lse);
EXPORT int attention_backward(const Attention *s, const void *q, const void *k, const void *v, const float *bias,
                              void *out, const void *dout, const int64_t *dout_strides, float *lse, void *dq,
                              void *dk, void *dv, const int64_t *grad, float *dbias, int64_t dbias_size);

#endif
