"""Other libraries' ways to compute what the curvature benchmark times, each as a function that imports its library.

A peer maps names of the benchmark's groups to builders of sides; what it cannot compute it leaves out. JAX peers are
compiled, PyTorch peers run as they do, eagerly, on as many threads as this process may use.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench._measure import Side, compiled
from experiments.bench._problem import (
    Batch,
    Params,
    Problem,
    flat,
    loss,
    mean_and_error,
    nodes,
    start_vector,
    vector_product,
)
from experiments.bench._references import tridiagonal
from plastax.types import Array

Builders = Mapping[str, Callable[[], list[Side]]]


def matfree(problem: Problem) -> Builders:
    """Krämer's matfree: Lanczos and quadrature around a product that the user brings, here plastax's."""
    from matfree import decomp, funm, stochtrace

    args = (problem.params, problem.batch, start_vector(problem))

    def tridiagonal_matrix(reortho: str) -> Callable[..., Array]:
        def run(params: Params, batch: Batch, start: Array) -> Array:
            return decomp.tridiag_sym(problem.order, reortho=reortho)(vector_product(params, batch), start).J_small

        return run

    def trace(params: Params, batch: Batch, start: Array) -> Any:
        identity = funm.dense_funm_sym_eigh(lambda x: x)
        integrand = funm.monte_carlo_funm_sym(identity, decomp.tridiag_sym(problem.order, reortho="full"))
        sampler = stochtrace.sampler_normal(start, num=problem.probes)
        estimate = stochtrace.estimator_monte_carlo_mean_and_sem(integrand, sampler)
        return estimate(vector_product(params, batch), problem.key)

    def lanczos() -> list[Side]:
        return [
            compiled("matfree, full", tridiagonal_matrix("full"), *args, read=nodes, sweeps="2"),
            compiled("matfree, none", tridiagonal_matrix("none"), *args, read=nodes),
        ]

    def quadrature() -> list[Side]:
        return [compiled("matfree, full, vmapped", trace, *args, read=np.asarray, sweeps="2")]

    return {"lanczos": lanczos, "quadrature": quadrature}


def laplax(problem: Problem) -> Builders:
    """Laplace approximations in JAX: a product, and Lanczos for low-rank terms."""
    from laplax.curv.hessian import hvp
    from laplax.curv.lanczos import lanczos_iterations

    args = (problem.params, problem.batch)

    def multiply(params: Params, batch: Batch, vector: Params) -> Params:
        return hvp(lambda p: loss(p, batch), params, vector)

    def tridiagonal_matrix(params: Params, batch: Batch, start: Array) -> Array:
        mv = vector_product(params, batch)
        diagonal, couplings, _ = lanczos_iterations(mv, start, maxiter=problem.order, dtype=jnp.float32)
        return tridiagonal(diagonal, couplings[:-1])

    def product() -> list[Side]:
        return [compiled("laplax", multiply, *args, problem.vector, read=flat)]

    def lanczos() -> list[Side]:
        return [compiled("laplax", tridiagonal_matrix, *args, start_vector(problem), read=nodes, sweeps="2")]

    return {"product": product, "lanczos": lanczos}


class Torch(NamedTuple):
    """The problem in PyTorch, whose kernels are transposed: ``[d_out, d_in]``."""

    torch: Any
    model: Any
    loss: Any
    batch: Any

    def tensors(self, tree: Params) -> list[Any]:
        """A tree like the parameters as tensors, in the order of the model's."""
        return [self.torch.tensor(np.asarray(x.T if x.ndim == 2 else x)) for pair in tree for x in pair]

    def flat(self, tree: Params) -> Any:
        """The same as one vector."""
        return self.torch.cat([x.reshape(-1) for x in self.tensors(tree)])

    def read(self, tensors: Sequence[Any]) -> np.ndarray:
        """Tensors like the model's parameters as a vector in JAX's order."""
        return np.concatenate([x.detach().numpy().T.ravel() for x in tensors])

    def read_flat(self, vector: Any) -> np.ndarray:
        """The same of one vector."""
        sizes = [p.numel() for p in self.model.parameters()]
        return self.read([x.reshape(p.shape) for x, p in zip(vector.split(sizes), self.model.parameters())])


def in_torch(problem: Problem) -> Torch:
    """The problem, weights and data included, for the PyTorch peers."""
    if jax.default_backend() != "cpu":
        raise RuntimeError("the PyTorch peers are set up for the CPU only")
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    modules: list[Any] = []
    for d_in, d_out in zip(problem.widths, problem.widths[1:]):
        modules += [torch.nn.Linear(d_in, d_out), torch.nn.ReLU()]
    model = torch.nn.Sequential(*modules[:-1])
    x, labels = (torch.tensor(np.asarray(a)) for a in problem.batch)
    out = Torch(torch, model, torch.nn.CrossEntropyLoss(), (x, labels.long()))
    with torch.no_grad():
        for p, value in zip(model.parameters(), out.tensors(problem.params)):
            p.copy_(value)
    return out


def curvlinops(problem: Problem) -> Builders:
    """Dangel's linear operators: products, Lanczos without orthogonalisation, the widest family of KFAC."""
    import curvlinops as library
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    here = in_torch(problem)
    settings = {
        "model_func": here.model, "loss_func": here.loss, "params": list(here.model.parameters()),
        "data": [here.batch], "check_deterministic": False,
    }  # fmt: skip

    op = library.HessianLinearOperator(**settings)

    def product() -> list[Side]:
        v = here.flat(problem.vector)
        return [Side("curvlinops", lambda: op @ v, here.read_flat)]

    def lanczos() -> list[Side]:
        return [Side("curvlinops", lambda: fast_lanczos(op, problem.order)[0], np.asarray)]

    def quadrature() -> list[Side]:
        def run() -> Any:
            return [fast_lanczos(op, problem.order) for _ in range(problem.probes)]

        def read(out: Any) -> np.ndarray:
            return mean_and_error([problem.dim * float(values @ vectors[0] ** 2) for values, vectors in out])

        return [Side("curvlinops", run, read)]

    def factors() -> list[Side]:
        kfac = library.KFACLinearOperator(**settings, fisher_type="empirical", separate_weight_and_bias=False)

        def read(_: Any) -> np.ndarray:
            names = sorted(kfac._input_covariances, key=int)
            pairs = [(kfac._input_covariances[name], kfac._gradient_covariances[name]) for name in names]
            return np.concatenate([x.numpy().ravel() for pair in pairs for x in pair])

        return [Side("curvlinops", kfac.compute_kronecker_factors, read)]

    return {"product": product, "lanczos": lanczos, "quadrature": quadrature, "factors_and_passes": factors}


def hessian_eigenthings(problem: Problem) -> Builders:
    """Golmant's eigenthings: products, Lanczos with one sweep, quadrature."""
    import hessian_eigenthings as library

    here = in_torch(problem)
    op = library.HessianOperator(here.model, [here.batch], library.supervised_loss(here.loss))

    def product() -> list[Side]:
        v = here.flat(problem.vector)
        return [Side("hessian-eigenthings", lambda: op.matvec(v), here.read_flat)]

    def lanczos() -> list[Side]:
        start = here.flat(problem.vector)

        def run() -> Any:
            out = library.lanczos_tridiagonal(op, start, problem.order, reorthogonalize=True)
            return out.alphas, out.betas

        def read(out: Any) -> np.ndarray:
            return nodes(tridiagonal(*map(jnp.asarray, out)))

        return [Side("hessian-eigenthings", run, read, sweeps="1")]

    def quadrature() -> list[Side]:
        def run() -> Any:
            return library.spectral_density(op, num_runs=problem.probes, lanczos_steps=problem.order)

        def read(out: Any) -> np.ndarray:
            return mean_and_error(problem.dim * (out.raw_weights * out.raw_eigenvalues).sum(1))

        return [Side("hessian-eigenthings", run, read, sweeps="1")]

    return {"product": product, "lanczos": lanczos, "quadrature": quadrature}


def pyhessian(problem: Problem) -> Builders:
    """PyHessian: products from one retained graph, quadrature with one sweep.

    Its release calls `torch.eig`, which PyTorch 2 took away; a stand-in is given back here.
    """
    import pyhessian as library
    from pyhessian.utils import hessian_vector_product

    here = in_torch(problem)

    def eig(matrix: Any, eigenvectors: bool) -> Any:
        values, vectors = here.torch.linalg.eig(matrix)
        return here.torch.view_as_real(values), vectors.real if eigenvectors else None

    here.torch.eig = eig
    hessian = library.hessian(here.model, here.loss, data=here.batch, cuda=False)

    def product() -> list[Side]:
        v = here.tensors(problem.vector)
        return [Side("PyHessian", lambda: hessian_vector_product(hessian.gradsH, hessian.params, v), here.read)]

    def lanczos() -> list[Side]:
        return [Side("PyHessian", lambda: hessian.density(iter=problem.order, n_v=1)[0][0], np.sort, sweeps="1")]

    def quadrature() -> list[Side]:
        def read(out: Any) -> np.ndarray:
            return mean_and_error(problem.dim * np.sum(np.asarray(out[0]) * np.asarray(out[1]), axis=1))

        return [Side("PyHessian", lambda: hessian.density(iter=problem.order, n_v=problem.probes), read, sweeps="1")]

    return {"product": product, "lanczos": lanczos, "quadrature": quadrature}


PEERS: dict[str, Callable[[Problem], Builders]] = {
    "matfree": matfree,
    "laplax": laplax,
    "curvlinops": curvlinops,
    "hessian-eigenthings": hessian_eigenthings,
    "pyhessian": pyhessian,
}
