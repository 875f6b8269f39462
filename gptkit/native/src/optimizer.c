/* Between the gradient and the weights: what touches every number of a model once a step. */
#include "vectors.h"

enum { SHARE = 16384 }; /* numbers whose squares are summed as one, so that the sum has an order of its own */

INLINE vec collect(const void *from, float *to, int64_t n, float scale, int bf16) {
  vec squares = {0};
  for (int64_t i = 0; i < n; i += LANES) {
    vec g = load_upto(from, i, n, bf16) * scale;
    store_upto(to, i, n, g, 0);
    squares += g * g;
  }
  return squares;
}

/* The gradients of `count` parameters, times scale, one after the other into `flat`: parameter p goes to
 * starts[p] … starts[p + 1]. Returns the norm of all of them; `sums` has room for a number of each share. */
EXPORT double collect_gradients(const void *const *gradients, const int64_t *starts, int64_t count, float *flat,
                                float scale, double *sums, int bf16, int threads) {
  int64_t size = starts[count], shares = (size + SHARE - 1) / SHARE;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t share = 0; share < shares; share++) {
    int64_t at_ = share * SHARE, end = MIN(at_ + SHARE, size), p = 0;
    double sum = 0;
    while (starts[p + 1] <= at_) p++;
    for (; at_ < end; p++) {
      int64_t to = MIN(starts[p + 1], end);
      if (to > at_) {
        const void *from = at(gradients[p], at_ - starts[p], bf16);
        vec squares = bf16 ? collect(from, flat + at_, to - at_, scale, 1)
                           : collect(from, flat + at_, to - at_, scale, 0);
        sum += sum_of(squares);
      }
      at_ = MAX(at_, to);
    }
    sums[share] = sum;
  }
  double total = 0;
  for (int64_t share = 0; share < shares; share++) total += sums[share];
  return sqrt(total);
}

typedef struct {
  float rate, beta1, beta2, eps, decay;
  float correction1, correction2; /* 1 - beta1^t, sqrt(1 - beta2^t) */
} AdamW;

/* AdamW (Loshchilov and Hutter 2019), in place */
EXPORT void adamw(float *values, const float *gradient, float *mean, float *square, int64_t n, const AdamW *s,
                  int threads) {
  float kept_share = 1 - s->rate * s->decay, step = s->rate / s->correction1;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t from = 0; from < n; from += SHARE) {
    int64_t to = MIN(from + SHARE, n);
    for (int64_t i = from; i < to; i += LANES) {
      vec g = load_upto(gradient, i, to, 0), m = load_upto(mean, i, to, 0), v = load_upto(square, i, to, 0);
      m += (g - m) * (1 - s->beta1);
      v = v * s->beta2 + g * g * (1 - s->beta2);
      vec root;
      for (int k = 0; k < LANES; k++) root[k] = sqrtf(v[k]);
      vec p = load_upto(values, i, to, 0) * kept_share;
      store_upto(values, i, to, p - step * m / (root / s->correction2 + s->eps), 0);
      store_upto(mean, i, to, m, 0);
      store_upto(square, i, to, v, 0);
    }
  }
}
