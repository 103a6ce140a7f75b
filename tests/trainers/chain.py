"""A chain whose optimum is known: Gaussian data, the exact denoiser, a linear reward, a policy of one shift per step.

Data N(MEAN, DEVIATION^2) per dimension make the exact prediction affine in x, and each step too: x_next = k x + l +
sigma z. With P_0 = 1, V_0 = 0, P = P_after k, V = V_after + P_after^2 sigma^2 (steps from last to first) the slope of
E[x_last | x] is P. For the reward sum_d b_d x_last_d the optimum of E[r] - kl_weight sum KL is the same chain, each
mean shifted by sigma^2 P_after b / kl_weight.
"""

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusion_blend.trainers.model.chain import ddim_steps, flow_steps
from torch import nn

MEAN, DEVIATION = 0.3, 0.7
SHAPE = (1, 1, 2)
SLOPES = torch.tensor([1.0, -0.5], dtype=torch.float64).reshape(SHAPE)


def ddim_scheduler(kind="epsilon"):
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=kind,
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def ddim_chain(steps=10, kind="epsilon"):
    return ddim_steps(ddim_scheduler(kind), steps, 1.0)


def flow_chain(steps=10, noise_level=0.7, shift=3.0):
    return flow_steps(FlowMatchEulerDiscreteScheduler(shift=shift), steps, noise_level)


def posterior_slope(step):
    """(slope, offset) of E[x0 | x] for x = signal x0 + noise n."""
    slope = step.signal * DEVIATION**2 / (step.signal**2 * DEVIATION**2 + step.noise**2)
    return slope, MEAN - slope * step.signal * MEAN


class OneStream:
    """The noise of a whole chunk from its first image's generator: fast, and nothing here looks at single images."""

    def __init__(self, generators):
        self.generator, self.count = generators[0], len(generators)

    def __call__(self):
        return torch.randn(self.count, *SHAPE, dtype=torch.float64, generator=self.generator)


class ChainPolicy(nn.Module):
    """The exact model, and a learnt shift of sigma * shifts[k] of each step's mean."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.shifts = nn.Parameter(torch.zeros(len(steps), *SHAPE, dtype=torch.float64))

    def encode(self, prompts):
        return prompts

    def exact(self, x, k):
        slope, offset = posterior_slope(self.steps[k])
        return (slope * x + offset - self.steps[k].x0_keep * x) / self.steps[k].x0_gain

    def predictor(self, conditions):
        return lambda x, k: self.exact(x, k) + self.shifts[k] * self.steps[k].sigma / self.steps[k].gain

    def reference_predictor(self, conditions):
        return self.exact

    def recomputing(self, predict):
        return predict

    def decode(self, latents):
        return latents

    def noise(self, generators):
        return OneStream(generators)

    def features(self, x, k, conditions):
        return torch.cat([x.flatten(1), torch.full((len(x), 1), float(k))], dim=1)

    def optimum(self, kl_weight):
        """The shifts that the closed form says are best."""
        slope_after, best = 1.0, []
        for k in reversed(range(len(self.steps))):
            step = self.steps[k]
            best.append(step.sigma * slope_after * SLOPES / kl_weight)
            slope, _ = posterior_slope(step)
            per_x = step.keep + step.gain * (slope - step.x0_keep) / step.x0_gain
            slope_after *= per_x
        return torch.stack(best[::-1])


def linear_reward(latents, prompts):
    return (latents * SLOPES).flatten(1).sum(1)
