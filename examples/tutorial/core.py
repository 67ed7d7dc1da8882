"""A regression with one hidden layer, in plain numpy so that it installs in seconds."""

import numpy as np


class DataLoader:
    """Batches of a fixed random regression problem."""

    def __init__(self, d_int: int, device: str, n_batches: int = 10, batch_size: int = 50) -> None:
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(d_int, 1))
        self.device = device
        self.batches = []
        for _ in range(n_batches):
            x = rng.normal(size=(batch_size, d_int))
            self.batches.append((x, np.tanh(x @ weights)))

    def __iter__(self):
        return iter(self.batches)


class OneHiddenLayer:
    """A network with one hidden layer of `n_layers` units."""

    def __init__(self, d_int: int, n_layers: int) -> None:
        rng = np.random.default_rng(1)
        self.w1 = rng.normal(size=(d_int, n_layers)) / np.sqrt(d_int)
        self.w2 = rng.normal(size=(n_layers, 1)) / np.sqrt(n_layers)

    def step(self, x: np.ndarray, y: np.ndarray, lr: float) -> float:
        """One step of gradient descent; returns the loss before it."""
        hidden = np.maximum(x @ self.w1, 0)
        error = hidden @ self.w2 - y
        grad_hidden = (error @ self.w2.T) * (hidden > 0)
        self.w2 -= lr * 2 * hidden.T @ error / len(x)
        self.w1 -= lr * 2 * x.T @ grad_hidden / len(x)
        return float(np.mean(error**2))
