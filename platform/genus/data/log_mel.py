"""From sound to log-mel frames: what speech models read."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genus.errors import DataError

MELS = 80
WINDOW, HOP = 0.025, 0.010
"""Seconds."""


def read_wav(path: Path) -> tuple[NDArray[np.float64], int]:
    """(the samples (n,) in [-1, 1), their rate in Hz) of a mono 16-bit wav file. DataError."""
    try:
        with wave.open(str(path)) as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                raise DataError(f"{path} is not mono with 16 bits a sample")
            data, rate = file.readframes(file.getnframes()), file.getframerate()
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(f"can't read the sound {path} ({error})") from None
    return np.frombuffer(data, "<i2") / 2**15, rate


def log_mel(sound: NDArray[np.float64], rate: int) -> NDArray[np.float16]:
    """Frames (S, MELS): windows of 25 ms every 10 ms, by Hann; energies of mel bands from 0 Hz to
    half the rate; then as in Whisper (Radford et al. 2023, arXiv:2212.04356) the decimal logarithm,
    at most 8 below the sound's greatest, plus 4, divided by 4. A sound below 25 ms is filled up
    with silence."""
    width, hop = round(WINDOW * rate), round(HOP * rate)
    sound = np.pad(sound, (0, max(0, width - len(sound))))
    windows = np.lib.stride_tricks.sliding_window_view(sound, width)[::hop] * np.hanning(width)
    points = 2 ** (4 * width - 1).bit_length()  # finer than the lowest bands are wide
    energy = np.abs(np.fft.rfft(windows, points)) ** 2 @ mel_bands(rate, points).T
    log = np.log10(energy.clip(1e-10))
    frames: NDArray[np.float16] = ((log.clip(log.max() - 8) + 4) / 4).astype(np.float16)
    return frames


def mel_bands(rate: int, points: int) -> NDArray[np.float64]:
    """(MELS, points // 2 + 1) triangles over the frequencies of a Fourier transform of ``points``,
    evenly apart in mel = 1127 ln(1 + Hz / 700)."""
    top = 1127 * np.log1p(rate / 2 / 700)
    edges = 700 * np.expm1(np.linspace(0, top, MELS + 2) / 1127)
    hertz = np.linspace(0, rate / 2, points // 2 + 1)
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (hertz - left) / (middle - left), (right - hertz) / (right - middle)
    bands: NDArray[np.float64] = np.minimum(rising, falling).clip(0)
    return bands
