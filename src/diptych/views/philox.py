"""Random numbers as a function: Philox, compiled.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import numpy as np
from numba import njit

# The paper's numbers; with others it is a generator that nobody has tested. All are np.uint64:
# numba makes a float of a uint64 and a plain integer, and digits are lost.
_M0, _M1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_W0, _W1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_LOW, _HALF, _TO_DOUBLE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(11)

_SMALL_M0, _SMALL_M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_SMALL_W0, _SMALL_W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


# numba has no integers of 128 bits.
@njit(cache=True, nogil=True)
def _multiply(a, b):
    """The high and low 64 bits of a 64 x 64 bit product, by the schoolbook's four products."""
    a_low, a_high = a & _LOW, a >> _HALF
    b_low, b_high = b & _LOW, b >> _HALF
    low = a_low * b_low
    middle = a_high * b_low + (low >> _HALF)
    other = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _HALF) + (other >> _HALF), a * b


@njit(cache=True, nogil=True)
def philox(key0, key1, counter0, counter1, counter2, counter3):
    """Philox4x64-10: four random uint64 from a key and a counter, all uint64."""
    for _ in range(10):
        high0, low0 = _multiply(_M0, counter0)
        high1, low1 = _multiply(_M1, counter2)
        counter0, counter1, counter2, counter3 = (
            high1 ^ counter1 ^ key0,
            low1,
            high0 ^ counter3 ^ key1,
            low0,
        )
        key0 += _W0
        key1 += _W1
    return counter0, counter1, counter2, counter3


@njit(cache=True, nogil=True)
def small_philox(key0, key1, counter0, counter1):
    """Philox4x32-10 with the other two counters 0: four random numbers below 2^32, as uint64.

    For noise on pixels: tensor libraries can compute it too, as no product needs more than 64 bits.
    """
    counter2, counter3 = np.uint64(0), np.uint64(0)
    for _ in range(10):
        product0, product1 = _SMALL_M0 * counter0, _SMALL_M1 * counter2
        counter0, counter1, counter2, counter3 = (
            (product1 >> _HALF) ^ counter1 ^ key0,
            product1 & _LOW,
            (product0 >> _HALF) ^ counter3 ^ key1,
            product0 & _LOW,
        )
        key0 = (key0 + _SMALL_W0) & _LOW
        key1 = (key1 + _SMALL_W1) & _LOW
    return counter0, counter1, counter2, counter3


# The shift by 11 keeps 53 bits, which a double holds: 64 of them could round up to 1.0.
@njit(cache=True, nogil=True)
def uniforms(seed, stream, block, view, image, epoch):
    """Four doubles in [0, 1)."""
    a, b, c, d = philox(
        np.uint64(seed),
        np.uint64(stream),
        np.uint64(block),
        np.uint64(view),
        np.uint64(image),
        np.uint64(epoch),
    )
    unit = 1.0 / 9007199254740992.0  # 2^-53
    return (
        (a >> _TO_DOUBLE) * unit,
        (b >> _TO_DOUBLE) * unit,
        (c >> _TO_DOUBLE) * unit,
        (d >> _TO_DOUBLE) * unit,
    )
