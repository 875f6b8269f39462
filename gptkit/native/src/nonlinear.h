/* The activations of the MLP and their derivatives, to the precision of fp32; gelu in bf16 to that of bf16. */
#ifndef GPTKIT_NONLINEAR_H
#define GPTKIT_NONLINEAR_H

#include "vectors.h"

enum { GELU, GELU_TANH, RELU2, SWIGLU };

/* P(X < x) of a standard normal, and its density: erf by Abramowitz and Stegun 7.1.26, error 1e-7. */
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

/* In bf16, whose unit in the last place is 4e-3 at 1, polynomials are precise enough: P(X < x) - 1/2 of a standard
 * normal is odd, and so is the derivative of gelu minus 1/2. Both are x times a polynomial in x^2 of least error on
 * [-4, 4] (1e-5 and 9e-5); outside, they are constant. */
INLINE vec odd(vec x, const float c[9]) {
  vec t = x * x, y = splat(c[8]);
  for (int i = 7; i >= 0; i--) y = y * t + c[i];
  return x * y + 0.5f;
}

static const float cdf_terms[9] = {3.98922710e-01f,  -6.64105955e-02f, 9.87747710e-03f,
                                   -1.13392216e-03f, 9.89080823e-05f,  -6.29499948e-06f,
                                   2.71615589e-07f,  -7.00346433e-09f, 8.06341290e-11f};
static const float derivative_terms[9] = {7.97609556e-01f,  -2.64826553e-01f, 5.84561179e-02f,
                                     -8.71632747e-03f, 9.07328090e-04f,  -6.49577507e-05f,
                                     3.02835947e-06f,  -8.21884340e-08f, 9.79611539e-10f};

INLINE vec clamp(vec x, float most) { return smaller(splat(most), larger(splat(-most), x)); }

INLINE vec activated(int kind, vec x, int bf16) {
  vec density;
  if (kind == GELU && bf16) return larger(splat(-4), x) * odd(clamp(x, 4), cdf_terms);
  if (kind == GELU) return x * normal_cdf(x, &density);
  if (kind == GELU_TANH) return gelu_tanh(x);
  vec r = larger(splat(0), x);
  return r * r;
}

INLINE vec derivative(int kind, vec x, int bf16) {
  if (kind == GELU && bf16) return odd(clamp(x, 4), derivative_terms);
  if (kind == GELU) {
    vec density, cdf = normal_cdf(x, &density);
    return cdf + x * density;
  }
  if (kind == GELU_TANH) { /* x s(u), with derivative s + x s (1 - s) u' */
    vec s = logistic(1.5957691f * (x + 0.044715f * x * x * x));
    return s + x * s * (1.0f - s) * 1.5957691f * (1.0f + 0.134145f * x * x);
  }
  return 2.0f * larger(splat(0), x);
}

#endif
