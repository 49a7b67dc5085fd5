// From noise to pictures: what diffusion/ does in Python, line by line. A batch (B, C, H, W) is one Float32Array.

/** What a network predicts is p x_0 + q ε: (p, q) as a function of a = sqrt(ᾱ) and σ = sqrt(1 - ᾱ). */
const OBJECTIVES = {
  pred_noise: () => [0, 1],
  pred_x0: () => [1, 0],
  pred_v: (a, sigma) => [-sigma, a],
  pred_flow: () => [-1, 1],
};

/** A diffusion process. facts: objective, clip_denoised and alphas_cumprod of networks.json. */
export class Diffusion {
  constructor({ objective, clip_denoised, alphas_cumprod }) {
    Object.assign(this, { objective, clip: clip_denoised, alphasCumprod: alphas_cumprod });
  }

  /** ᾱ_t; 1 at t = -1, where there is no noise. */
  alphaBar(t) {
    return t >= 0 ? this.alphasCumprod[t] : 1;
  }

  logSnr(t) {
    return Math.log(this.alphaBar(t) / (1 - this.alphaBar(t)));
  }

  /** x_0 from one call of the network at timestep t: x_0 = (q x_t - σ output) / (q a - p σ), clipped to [-1, 1]. */
  async predict(model, x, t) {
    const a = Math.sqrt(this.alphaBar(t)), sigma = Math.sqrt(1 - this.alphaBar(t));
    const [p, q] = OBJECTIVES[this.objective](a, sigma);
    const divisor = q * a - p * sigma;
    const xStart = q ? mix(q / divisor, x, -sigma / divisor, await model(x, t)) : await model(x, t);
    return this.clip ? xStart.map((value) => Math.min(1, Math.max(-1, value))) : xStart;
  }

  /** The steps (t, t_prev) of a sampler with so many network calls; t_prev = -1 is x_0. */
  steps(calls) {
    const T = this.alphasCumprod.length;
    const timesteps = Array.from({ length: calls + 1 }, (_, k) => Math.floor((k * T) / calls) - 1).reverse();
    return timesteps.slice(0, -1).map((t, i) => [t, timesteps[i + 1]]);
  }
}

/** Song et al. 2021, eq. 12, with eta 0. */
async function* ddim(diffusion, model, x, steps) {
  for (const [t, tPrev] of steps) {
    const xStart = await diffusion.predict(model, x, t);
    x = ddimStep(diffusion, xStart, x, t, tPrev);
    yield { t, sample: x, xStart };
  }
}

/** UniPC of order 2 for predictions of x_0 (Zhao et al. 2023): each call also corrects the step before it. */
async function* unipc(diffusion, model, x, steps) {
  let known = [], xLast = x; // the last three predictions, newest first; x before the last step
  for (const [t, tPrev] of steps) {
    const predicted = await diffusion.predict(model, x, t);
    let xStart = predicted;
    known = [{ t, xStart: predicted }, ...known.slice(0, 2)];
    if (known.length > 1) {
      const last = known[1];
      x = ddimStep(diffusion, corrected(diffusion, ...known), xLast, last.t, t);
      if (tPrev >= 0) {
        const beyond = secondOrder(diffusion, last.t, t, tPrev);
        xStart = mix(1 + beyond, xStart, -beyond, last.xStart);
      }
    }
    xLast = x;
    x = ddimStep(diffusion, xStart, x, t, tPrev);
    yield { t, sample: x, xStart: predicted };
  }
}

/** Each: (diffusion, model, x_T, steps) -> frames { t, sample: x_{t_prev}, xStart: the predicted x_0 }. */
export const SAMPLERS = { UniPC: unipc, DDIM: ddim };

function ddimStep(diffusion, xStart, x, t, tPrev) {
  const ac = diffusion.alphaBar(t), acPrev = diffusion.alphaBar(tPrev);
  const ofX = Math.sqrt((1 - acPrev) / (1 - ac));
  return mix(ofX, x, Math.sqrt(acPrev) - ofX * Math.sqrt(ac), xStart);
}

/** How far DPM-Solver++(2M) extrapolates x_0: half of this step over the last one, in log-SNR. */
function secondOrder(diffusion, tLast, t, tPrev) {
  const [last, now, then] = [tLast, t, tPrev].map((i) => diffusion.logSnr(i));
  return (then - now) / (2 * (now - last));
}

/** The x_0 of a step, from the predictions at its end, at its start and one step before: see diffusion/samplers.py. */
function corrected(diffusion, end, start, before) {
  const lamStart = diffusion.logSnr(start.t) / 2;
  const h = diffusion.logSnr(end.t) / 2 - lamStart;
  const mean = 1 / -Math.expm1(-h) - 1 / h; // of u, which goes from 0 to 1 along the step
  if (!before) return mix(1 - mean, start.xStart, mean, end.xStart);
  const ofSquare = 1 / -Math.expm1(-h) - (2 * mean) / h;
  const u = (diffusion.logSnr(before.t) / 2 - lamStart) / h;
  const ofBefore = (ofSquare - mean) / (u * (u - 1)), ofEnd = mean - u * ofBefore;
  const line = mix(1 - ofBefore - ofEnd, start.xStart, ofEnd, end.xStart);
  return mix(1, line, ofBefore, before.xStart);
}

/**
 * A function of (x, t) from network(x, t, labels): the sum of what it says for several labels, each with its weight.
 * terms: [{ labels, weights }], both with a number for each sample; the weights of a sample add up to 1. Weights w for
 * the label and 1 - w for no label are classifier-free guidance (Ho & Salimans 2022).
 */
export function withLabels(network, terms) {
  const used = terms.filter(({ weights }) => weights.some((weight) => weight !== 0));
  return async (x, t) => {
    const sum = new Float32Array(x.length);
    for (const { labels, weights } of used) {
      const output = await network(x, t, labels);
      const size = x.length / weights.length;
      output.forEach((value, i) => (sum[i] += weights[Math.floor(i / size)] * value));
    }
    return sum;
  };
}

/** Standard normal noise, a function of (seed, index) alone: Box and Muller's, from the generator mulberry32. */
export function normal(seed, index, length) {
  let state = Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(index + 1, 0x85ebca6b);
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return (((z ^ (z >>> 14)) >>> 0) + 0.5) / 2 ** 32;
  };
  const draw = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  return Float32Array.from({ length }, draw);
}

/** From x (lambda = 0) to y (1) along the sphere, which keeps the noise as strong as noise is (Shoemake 1985). */
export function slerp(x, y, lambda) {
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const angle = Math.acos(Math.min(1, Math.max(-1, dot(x, y) / Math.sqrt(dot(x, x) * dot(y, y)))));
  if (angle < 1e-6) return x;
  return mix(Math.sin((1 - lambda) * angle) / Math.sin(angle), x, Math.sin(lambda * angle) / Math.sin(angle), y);
}

/** a x + b y */
function mix(a, x, b, y) {
  return x.map((value, i) => a * value + b * y[i]);
}
