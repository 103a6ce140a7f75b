"""Gaussian worlds: data whose denoiser, and whose tilt by a reward, are known in closed form (float64).

    variance exploding   x = x0 + sigma * n              "ve"
    rectified flow       x = (1 - sigma) * x0 + sigma * n   "flow"

In both x = a x0 + sigma n, so for a component N(m, S) the noisy density is N(a m, a^2 S + sigma^2 I) and

    D(x, sigma) = m + a S (a^2 S + sigma^2 I)^-1 (x - a m)

which Tweedie's formula D = (x + sigma^2 grad log p(x)) / a confirms by autograd. Tilting a component by
exp(r / kl_weight) gives a component again, its weight times the normaliser: a linear r = a . x shifts the mean by
S a / kl_weight, a quadratic r = -1/2 (x - b)^T Q (x - b) adds the precision Q / kl_weight. On one Gaussian the Jensen
gap (arXiv 2505.18547, Lemma 1) is flat for the first and not for the second.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch

FAMILIES = ("ve", "flow")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def covariance(size, seed):
    """A symmetric matrix with eigenvalues between 0.2 and about 2."""
    root = normal(size, size, seed=seed) / size**0.5
    return root @ root.T * 0.5 + 0.2 * torch.eye(size, dtype=torch.float64)


def signal(sigma, family):
    """a of x = a x0 + sigma n."""
    return 1.0 if family == "ve" else 1.0 - sigma


@dataclass(frozen=True)
class World:
    """A Gaussian mixture: weights (k,) that sum to 1, means (k, d), covariances (k, d, d); k may be 1."""

    weights: torch.Tensor
    means: torch.Tensor
    covariances: torch.Tensor

    @property
    def size(self):
        return self.means.shape[1]

    def log_density(self, x, sigma, family="ve"):
        """log p(x) of the noisy x (batch, d) at sigma, up to the constant of all Gaussians."""
        return torch.logsumexp(self._joint(x, sigma, family), dim=1)

    def denoised(self, x, sigma, family="ve"):
        """E[x0 | x], (batch, d): the components' own, weighed by their posterior."""
        a = signal(sigma, family)
        posterior = torch.softmax(self._joint(x, sigma, family), dim=1)
        offsets = x[:, None] - a * self.means
        gain = a * self.covariances @ torch.linalg.inv(self._noisy(sigma, a))
        means = self.means + torch.einsum("kij,bkj->bki", gain, offsets)
        return (posterior[..., None] * means).sum(1)

    def tilted_linear(self, direction, kl_weight):
        """p(x0) exp(direction . x0 / kl_weight), normalised."""
        pull = direction / kl_weight
        shift = self.covariances @ pull
        log_weights = self.weights.log() + self.means @ pull + 0.5 * shift @ pull
        return World(torch.softmax(log_weights, 0), self.means + shift, self.covariances)

    def tilted_quadratic(self, centre, curvature, kl_weight):
        """p(x0) exp(-1/2 (x0 - centre)^T curvature (x0 - centre) / kl_weight), normalised."""
        pull = curvature / kl_weight
        precision = torch.linalg.inv(self.covariances)
        covariances = torch.linalg.inv(precision + pull)
        right = precision @ self.means[..., None] + (pull @ centre)[:, None]
        means = (covariances @ right)[..., 0]
        spread = torch.eye(self.size, dtype=torch.float64) + self.covariances @ pull
        away = self.means - centre
        energy = (away[:, None] @ pull @ torch.linalg.solve(spread, away[..., None]))[:, 0, 0]
        log_weights = self.weights.log() - 0.5 * torch.logdet(spread) - 0.5 * energy
        return World(torch.softmax(log_weights, 0), means, covariances)

    def draw(self, count, seed):
        """(count, d) samples of x0."""
        generator = seeded(seed)
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.size, 1, dtype=torch.float64, generator=generator)
        return self.means[which] + (torch.linalg.cholesky(self.covariances)[which] @ noise)[..., 0]

    def _noisy(self, sigma, a):
        return a**2 * self.covariances + sigma**2 * torch.eye(self.size, dtype=torch.float64)

    def _joint(self, x, sigma, family):
        """log of weight times density of each component, (batch, k)."""
        a = signal(sigma, family)
        noisy = self._noisy(sigma, a)
        offsets = x[:, None] - a * self.means
        energy = torch.einsum("bki,kij,bkj->bk", offsets, torch.linalg.inv(noisy), offsets)
        return self.weights.log() - 0.5 * (torch.logdet(noisy) + energy)


def gaussian(size=6, seed=0):
    """One Gaussian with a full covariance."""
    return World(torch.ones(1, dtype=torch.float64), normal(1, size, seed=seed), covariance(size, seed + 1)[None])


def mixture(size=16, components=4, seed=0):
    """`components` Gaussians of unequal weight, some distance apart."""
    weights = torch.rand(components, dtype=torch.float64, generator=seeded(seed)) + 0.2
    covariances = torch.stack([0.3 * covariance(size, seed + 1 + i) for i in range(components)])
    return World(weights / weights.sum(), 2 * normal(components, size, seed=seed + 99), covariances)


# --- parameterisations: what a network may predict, from and to denoised


def to_eps(denoised, x, sigma, family="ve"):
    return (x - signal(sigma, family) * denoised) / sigma


def from_eps(eps, x, sigma, family="ve"):
    return (x - sigma * eps) / signal(sigma, family)


def to_v(denoised, x, sigma):
    """v = alpha eps - sigma_vp x0 of the variance-preserving view x / sqrt(1 + sigma^2) of a "ve" state."""
    alpha = (1 + sigma**2) ** -0.5
    return alpha * to_eps(denoised, x, sigma) - sigma * alpha * denoised


def from_v(v, x, sigma):
    alpha = (1 + sigma**2) ** -0.5
    return alpha**2 * x - sigma * alpha * v


def to_velocity(denoised, x, sigma):
    """n - x0 of rectified flow."""
    return (x - denoised) / sigma


def from_velocity(velocity, x, sigma):
    return x - sigma * velocity


# --- sampling


def schedule(steps, family="ve"):
    """(steps + 1,) falling sigmas that end at 0; "flow" starts just below pure noise."""
    if family == "flow":
        return torch.linspace(0.99, 0, steps + 1, dtype=torch.float64).tolist()
    ramp = torch.linspace(20.0 ** (1 / 7), 0.02 ** (1 / 7), steps, dtype=torch.float64) ** 7
    return [*ramp.tolist(), 0.0]


def start(batch, size, family="ve", seed=0):
    """The noise a run starts from."""
    return normal(batch, size, seed=seed) * schedule(2, family)[0]


def sample(denoiser, x, sigmas, family="ve", eta=0.0, seed=0):
    """x0 at the end of a first-order run: Euler at eta 0, ancestral above. denoiser(x, sigma, step) -> denoised."""
    generator = seeded(seed)
    for step, (now, after) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, now, step)
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        mean, spread = _reverse_step(x, denoised, now, after, family, eta)
        x = mean + spread * noise
    return x


def _reverse_step(x, denoised, now, after, family, eta):
    if family == "ve":
        up = min(after, eta * (after**2 * (now**2 - after**2) / now**2) ** 0.5)
        down = (after**2 - up**2) ** 0.5
        return denoised + (x - denoised) * (down / now), up
    down = after * (1 + (after / now - 1) * eta)
    shrink = (1 - after) / (1 - down)
    mean = shrink * (down / now * x + (1 - down / now) * denoised)
    return mean, max(after**2 - (down * shrink) ** 2, 0.0) ** 0.5
