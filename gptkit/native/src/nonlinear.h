/* The non-linearities of the MLP, to the last bits of fp32. */
#ifndef GPTKIT_NONLINEAR_H
#define GPTKIT_NONLINEAR_H

#include "vectors.h"

enum { GELU, GELU_TANH, RELU2, SWIGLU };

/* P(X < x) of a standard normal, and its density: erf by Abramowitz and Stegun 7.1.26, wrong by 1e-7. */
INLINE vec normal_cdf(vec x, vec *density) {
  vec size = (vec)((ivec)x & 0x7fffffff) * 0.70710678f;
  vec t = 1.0f / (1.0f + 0.3275911f * size);
  vec bell = vexp(-size * size);
  vec tail = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) *
             t * bell * 0.5f;
  *density = bell * 0.39894228f;
  return choose(x < 0.0f, tail, 1.0f - tail);
}

INLINE vec logistic(vec x) { return 1.0f / (1.0f + vexp(-x)); }

/* x (1 + tanh u) / 2 is x times the logistic function of 2 u */
INLINE vec gelu_tanh(vec x) { return x * logistic(1.5957691f * (x + 0.044715f * x * x * x)); }

#endif
