"""Simulated light of stars, galaxies and quasars, and what a survey's telescope makes of it.

A spectrum is a continuum times exp(-absorption) times (1 + emission), seen at a redshift, dimmed by
dust, and then observed: by a spectrograph of resolution 1,800 whose calibration is a little off,
under a sky that glows and absorbs. Everything is drawn in columns, a row for each object.

Lines and bands are where they are in nature. How strong they are follows, roughly, what spectral
atlases show; no spectrum here is that of an object in the sky.

Wavelengths are in Angstrom, in vacuum; velocities in km/s. Sources: line positions, the table of
spectral lines of the SDSS (data release 6) and NIST's; heads of molecular bands, Gray and Corbally
2009; quasars, Vanden Berk et al. 2001, table 2; the forest before Lyman alpha, Madau 1995; the
night sky, Osterbrock et al. 1996; dust, a power of the wavelength that stays within about a tenth
of Cardelli, Clayton and Mathis 1989 here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SHORTEST, LONGEST, POINTS = 3900.0, 9000.0, 2600
WAVELENGTHS = np.geomspace(SHORTEST, LONGEST, POINTS)  # so that a redshift is a shift
STEP = np.log(LONGEST / SHORTEST) / (POINTS - 1)
LIGHT = 299_792.458  # km/s
PLANCK = 1.438777e8  # h c / k, in Angstrom kelvin
RESOLUTION = LIGHT / 1_800 / 2.355  # the spectrograph's own width, as a standard deviation
PerObject = np.ndarray  # (n,), a number for each object


class Line(NamedTuple):
    """An absorption line of stars: strongest at `temperature`, exp(-1/2) as strong at a factor
    exp(`spread`) from it; `depth` is the optical depth there, `width` its own width."""

    name: str
    wavelength: float
    temperature: float
    spread: float
    depth: float
    width: float


STELLAR = [
    *(
        Line(name, at, 9_500, 0.33, depth, 330)
        for name, at, depth in (
            ("H alpha", 6564.6, 0.8), ("H beta", 4862.7, 0.9), ("H gamma", 4341.7, 0.9),
            ("H delta", 4102.9, 0.9), ("H epsilon", 3971.2, 0.9),
            ("P 12", 8752.9, 0.3), ("P 14", 8600.8, 0.3),
        )
    ),
    Line("Ca K", 3934.8, 4_600, 0.35, 1.6, 250), Line("Ca H", 3969.6, 4_600, 0.35, 1.4, 250),
    Line("Ca I", 4227.9, 3_900, 0.22, 0.9, 90), Line("G band", 4305.6, 5_200, 0.20, 0.5, 600),
    Line("Fe I", 4046.9, 4_600, 0.28, 0.5, 60), Line("Fe I", 4384.8, 4_600, 0.28, 0.7, 90),
    Line("Fe I", 4532.3, 4_600, 0.28, 0.4, 120), Line("Fe I", 5271.6, 4_600, 0.28, 0.5, 90),
    Line("Fe I", 5329.5, 4_600, 0.28, 0.4, 60), Line("Ba/Fe/Ca", 6498.0, 4_300, 0.25, 0.3, 80),
    Line("Mg b", 5168.7, 4_500, 0.30, 0.7, 60), Line("Mg b", 5174.1, 4_500, 0.30, 0.8, 60),
    Line("Mg b", 5185.0, 4_500, 0.30, 0.9, 60),
    Line("Na D", 5891.6, 3_900, 0.35, 0.9, 60), Line("Na D", 5897.6, 3_900, 0.35, 0.8, 60),
    Line("K I", 7667.0, 3_200, 0.22, 0.9, 90), Line("K I", 7701.1, 3_200, 0.22, 0.8, 90),
    Line("Na I", 8185.5, 3_200, 0.22, 0.7, 60), Line("Na I", 8197.1, 3_200, 0.22, 0.8, 60),
    Line("Ca II", 8500.4, 4_800, 0.40, 0.5, 60), Line("Ca II", 8544.4, 4_800, 0.40, 0.8, 80),
    Line("Ca II", 8664.5, 4_800, 0.40, 0.7, 80),
    Line("Mg II", 4482.4, 10_500, 0.25, 0.3, 60),
    Line("He I", 4027.3, 20_000, 0.28, 0.4, 120), Line("He I", 4472.7, 20_000, 0.28, 0.4, 120),
    Line("He I", 5877.3, 20_000, 0.28, 0.3, 90), Line("He I", 6680.0, 20_000, 0.28, 0.3, 90),
    Line("He II", 4542.9, 42_000, 0.22, 0.3, 120), Line("He II", 4687.0, 42_000, 0.22, 0.3, 120),
    Line("He II", 5413.0, 42_000, 0.22, 0.3, 120),
]  # fmt: skip
# Heads of bands of titanium oxide, whose absorption sinks from there to the red, and optical depth.
TITANIUM_OXIDE = {
    4763.0: 0.5, 4956.0: 0.6, 5169.0: 0.7, 5450.0: 0.6, 5849.0: 0.6, 6160.0: 0.7, 6653.0: 0.6,
    7056.0: 0.9, 7591.0: 0.5, 8434.0: 0.5, 8862.0: 0.5,
}  # fmt: skip
# Of galaxies: name, wavelength, equivalent width as a part of H alpha's.
NEBULAR = [
    ("[O II]", 3728.5, 0.9), ("H beta", 4862.7, 0.25), ("[O III]", 4960.3, 0.12),
    ("[O III]", 5008.2, 0.36), ("[O I]", 6302.0, 0.04), ("[N II]", 6549.9, 0.12),
    ("H alpha", 6564.6, 1.0), ("[N II]", 6585.3, 0.36), ("[S II]", 6718.3, 0.18),
    ("[S II]", 6732.7, 0.14),
]  # fmt: skip
# Of quasars: name, wavelength, equivalent width, and the width as a part of Mg II's (0: narrow).
BROAD = [
    ("Ly alpha", 1215.7, 80.0, 1.2), ("N V", 1240.8, 12.0, 1.2), ("Si IV", 1397.6, 8.0, 1.2),
    ("C IV", 1549.5, 24.0, 1.1), ("He II", 1640.4, 4.0, 1.3), ("C III]", 1908.7, 21.0, 1.4),
    ("Mg II", 2799.1, 32.0, 1.0), ("H delta", 4102.9, 5.0, 1.0), ("H gamma", 4341.7, 13.0, 1.0),
    ("H beta", 4862.7, 46.0, 1.0), ("H alpha", 6564.6, 180.0, 0.9), ("[O II]", 3728.5, 1.6, 0.0),
    ("[O III]", 4960.3, 4.0, 0.0), ("[O III]", 5008.2, 13.0, 0.0),
]  # fmt: skip
# Lines of the night sky, mostly of OH, and how bright they are; bands of the air, and their depth.
NIGHT = {
    4047.7: 0.4, 4359.6: 0.6, 5462.3: 0.5, 5578.9: 6.0, 5891.6: 1.0, 6302.0: 2.5, 6365.5: 0.9,
    6865.7: 0.8, 7242.0: 0.7, 7278.0: 1.8, 7318.2: 2.0, 7342.8: 2.2, 7371.0: 1.2, 7403.2: 0.6,
    7718.0: 0.8, 7752.8: 2.3, 7796.1: 3.0, 7823.2: 2.6, 7843.3: 1.3, 7915.7: 3.0, 7966.5: 2.4,
    7995.5: 2.4, 8027.8: 1.4, 8064.0: 0.6, 8290.7: 0.8, 8313.0: 0.6, 8346.7: 2.4, 8384.0: 0.5,
    8401.7: 3.0, 8432.4: 3.2, 8454.2: 1.2, 8467.5: 2.6, 8495.7: 0.9, 8507.1: 2.0, 8541.8: 0.7,
    8763.3: 0.9, 8780.4: 2.6, 8793.2: 1.3, 8829.5: 3.4, 8852.6: 2.6, 8870.1: 3.4, 8887.9: 2.4,
    8905.5: 3.4, 8922.0: 2.6, 8945.8: 3.0, 8961.0: 2.0, 8990.8: 3.0,
}  # fmt: skip
AIR = {(6869, 6944): 0.12, (7162, 7330): 0.08, (7594, 7700): 0.35, (8130, 8350): 0.07}
TYPES = {"O": (30_000, 42_000), "B": (11_000, 28_000), "A": (7_500, 10_500), "F": (6_000, 7_500),
         "G": (5_300, 6_000), "K": (3_900, 5_300), "M": (2_800, 3_900)}  # fmt: skip
COMMON = {"O": 0.01, "B": 0.03, "A": 0.10, "F": 0.28, "G": 0.30, "K": 0.19, "M": 0.09}


# --- Objects: count and generator to flux (n, POINTS) and redshift (n,) ---------------------------


def stars(count: int, generator: np.random.Generator) -> tuple[np.ndarray, PerObject]:
    """Of all spectral types, near enough to have no redshift but their own motion's.

    One in fifty has hydrogen in emission, as flare and Be stars have, one in fifty is a white dwarf
    with lines as wide as a quasar's.
    """
    kind = generator.choice(len(TYPES), count, p=list(COMMON.values()))
    low, high = np.array(list(TYPES.values()), float)[kind].T
    temperature = np.exp(generator.uniform(np.log(low), np.log(high)))
    redshift = generator.normal(0, 90, count) / LIGHT
    odd = generator.uniform(size=count)
    dwarf = (odd < 0.02) & (temperature > 7_000)
    width = np.where(dwarf, generator.uniform(1_500, 3_500, count), 0.0)
    width = np.hypot(width, generator.gamma(2.0, np.where(temperature > 7_000, 60, 8)))
    metals = np.where(dwarf, 0.0, np.exp(generator.normal(0, 0.35, count)))
    flux = stellar(temperature, redshift, width, metals)
    bright = np.where((odd > 0.98) & ~dwarf, generator.uniform(0.3, 2.5, count), 0.0)
    emission = lines(count)
    for line in STELLAR[:4]:
        add_line(emission, line.wavelength * (1 + redshift), bright, RESOLUTION + width)
        bright = bright * 0.6
    flux *= 1 + emission[:, :POINTS]
    return flux * dust(generator.exponential(0.25, count)), redshift


def galaxies(count: int, generator: np.random.Generator) -> tuple[np.ndarray, PerObject]:
    """Old and young stars together, and the gas among the young ones, at redshifts to 0.6."""
    redshift = 0.02 + 0.58 * generator.beta(1.6, 3.0, count)
    dispersion = generator.uniform(80, 300, count)
    young = generator.beta(0.6, 1.2, count)
    metals = np.exp(generator.normal(0.1, 0.2, count))
    flux = np.zeros((count, POINTS))
    for share, low, high in (
        ((1 - young), 4_100, 4_700),
        ((1 - young) * 0.5, 5_200, 6_200),
        (young, 7_500, 14_000),
    ):
        temperature = generator.uniform(low, high, count)
        flux += share[:, None] * stellar(temperature, redshift, dispersion, metals)
    strength = np.exp(generator.normal(0, 0.8, count)) * (0.5 + 40 * young**1.5)
    hardness = np.exp(generator.normal(0, 0.6, count))  # of the light that ionizes
    emission = lines(count)
    for name, wavelength, part in NEBULAR:
        width = np.hypot(RESOLUTION, 0.6 * dispersion)
        factor = {"[O III]": hardness, "[N II]": 1 / hardness}.get(name, 1.0)
        own = wavelength * width / LIGHT * np.sqrt(2 * np.pi)  # area of a line of height 1
        add_line(emission, wavelength * (1 + redshift), strength * part * factor / own, width)
    flux *= 1 + emission[:, :POINTS]
    return flux * dust(generator.exponential(0.2, count)), redshift


def quasars(count: int, generator: np.random.Generator) -> tuple[np.ndarray, PerObject]:
    """Power laws with broad lines, to redshift 4; what they are at depends on the redshift."""
    redshift = 0.1 + 3.9 * generator.beta(1.4, 2.2, count)
    rest = WAVELENGTHS / (1 + redshift[:, None])
    slope = generator.normal(-1.5, 0.3, count)[:, None]
    flux = (rest / 5000) ** slope * (1 + (rest / 5600) ** 4) ** 0.45  # flatter in the red
    iron = generator.uniform(0.05, 0.3, count)[:, None]
    for centre, width, part in ((2500, 0.10, 1.0), (3000, 0.10, 0.9), (4570, 0.02, 0.7),
                                (5250, 0.025, 0.6)):  # fmt: skip
        flux *= 1 + iron * part * np.exp(-0.5 * (np.log(rest / centre) / width) ** 2)
    width = np.exp(generator.normal(np.log(1_900), 0.35, count))
    strength = np.exp(generator.normal(0, 0.35, count))
    emission = lines(count)
    for _, wavelength, equivalent, part in BROAD:
        own_strength = strength * np.exp(generator.normal(0, 0.25, count))
        own_width = np.hypot(RESOLUTION, part * width if part else 250.0)
        area = wavelength * own_width / LIGHT * np.sqrt(2 * np.pi)
        height = own_strength * equivalent / area
        add_line(emission, wavelength * (1 + redshift), height, own_width)
    flux *= 1 + emission[:, :POINTS]
    forest = 0.0036 * (WAVELENGTHS / 1215.67) ** 3.46  # mean optical depth of what lies before
    ragged = generator.gamma(0.7, 1 / 0.7, (count, POINTS))
    flux *= np.where(rest < 1215.67, np.exp(-forest * ragged), 1.0)
    return flux * dust(generator.exponential(0.08, count)), redshift


# --- Their parts ----------------------------------------------------------------------------------


def stellar(
    temperature: PerObject, redshift: PerObject, width: PerObject, metals: PerObject
) -> np.ndarray:
    """The light of stars, 1 near 5500 at rest: (n, POINTS).

    width: of velocities, beside the lines' own; metals: what all but hydrogen and helium absorbs.
    """
    rest = WAVELENGTHS / (1 + redshift[:, None])
    kelvin = temperature[:, None]
    flux = (5500 / rest) ** 5 / np.expm1(PLANCK / (rest * kelvin))  # Planck's law
    flux *= np.expm1(PLANCK / (5500 * kelvin))
    depth = lines(len(temperature))
    for line in STELLAR:
        strength = _bump(temperature, line.temperature, line.spread) * line.depth
        if not line.name.startswith(("H", "P")):
            strength = strength * metals
        own = np.sqrt(RESOLUTION**2 + line.width**2 + width**2)
        height = strength * line.width / own  # the same absorption over a wider line
        add_line(depth, line.wavelength * (1 + redshift), height, own)
    depth = depth[:, :POINTS]
    # Metals absorb more the bluer it gets, and much more from 4000 on: the 4000 A break.
    blanket = (metals * 0.55 * _bump(temperature, 4_200, 0.4))[:, None]
    depth += blanket * (_past(4000 - rest, 25) + 0.4 * np.exp((3900 - rest) / 700))
    cool = np.flatnonzero(temperature < 4_300)
    oxide = _bump(np.maximum(temperature[cool], 2_900), 2_900, 0.13)[:, None]
    for head, own_depth in TITANIUM_OXIDE.items():
        past = rest[cool] - head
        depth[cool] += oxide * own_depth * np.exp(-np.maximum(past, 0) / 130) * _past(past, 4)
    return flux * np.exp(-depth)


def _bump(temperature: PerObject, best: float, spread: float) -> PerObject:
    return np.exp(-0.5 * (np.log(temperature / best) / spread) ** 2)


def _past(distance: np.ndarray, width: float) -> np.ndarray:
    """From 0 to 1 about distance 0."""
    return 0.5 + 0.5 * np.tanh(distance / (2 * width))


def lines(count: int) -> np.ndarray:
    """Nothing yet, for `add_line`: a column more than there are points takes what lies outside."""
    return np.zeros((count, POINTS + 1))


def add_line(onto: np.ndarray, wavelength: PerObject, height: PerObject, width: PerObject) -> None:
    """Add a Gaussian in the logarithm of the wavelength to each row; `width` as a velocity."""
    sigma = np.broadcast_to(width, len(onto)) / LIGHT / STEP
    centre = np.log(wavelength / SHORTEST) / STEP
    reach = int(np.ceil(4 * sigma.max(initial=0)))
    place = np.rint(centre).astype(int)[:, None] + np.arange(-reach, reach + 1)
    values = np.exp(-0.5 * ((place - centre[:, None]) / sigma[:, None]) ** 2)
    place = np.where((place >= 0) & (place < POINTS), place, POINTS)
    values *= np.broadcast_to(height, len(onto))[:, None]
    onto[np.arange(len(onto))[:, None], place] += values


def dust(extinction: PerObject) -> np.ndarray:
    """What is left behind so many magnitudes at 5500."""
    return 10 ** (-0.4 * extinction[:, None] * (WAVELENGTHS / 5500) ** -1.3)


# --- The telescope --------------------------------------------------------------------------------


def signal_to_noise(unknown: np.ndarray, generator: np.random.Generator) -> PerObject:
    """Of a point in the middle: 1.2 to 50 where the object is known, 0.15 to 2 where it is not."""
    low, high = np.where(unknown, 0.15, 1.2), np.where(unknown, 2.0, 50.0)
    return low * (high / low) ** generator.uniform(size=len(unknown))


def observe(flux: np.ndarray, signal: PerObject, generator: np.random.Generator) -> np.ndarray:
    """As it comes from the survey's pipeline: (n, POINTS), float32."""
    count = len(flux)
    flux = flux / np.median(flux, axis=1, keepdims=True)
    for (start, stop), depth in AIR.items():
        inside = np.abs(WAVELENGTHS - (start + stop) / 2) < (stop - start) / 2
        flux[:, inside] *= np.exp(-depth * np.abs(generator.normal(0, 0.7, (count, 1))))
    # The calibration is off by a slope, a curve, and a step where the two arms meet.
    x = np.log(WAVELENGTHS / 5900) / np.log(LONGEST / 5900)
    slope, curve, step = generator.normal(0, 1, (3, count, 1)) * [[[0.25]], [[0.12]], [[0.04]]]
    flux *= np.exp(slope * x + curve * x * x + step * (WAVELENGTHS > 5900))
    # Noise of the object's own light and of the sky's, where the instrument sees little more so.
    glow, residual = lines(1), lines(count)
    for wavelength, brightness in NIGHT.items():
        add_line(glow, np.array([wavelength]), np.array([brightness]), np.array([RESOLUTION]))
        off = generator.normal(0, 0.5, count) * np.sqrt(brightness)
        add_line(residual, np.full(count, wavelength), off, np.full(count, 1.1 * RESOLUTION))
    blue, red = np.exp((3900 - WAVELENGTHS) / 250), np.exp((WAVELENGTHS - 9000) / 350)
    darkness = 1 + 2.5 * blue + 1.2 * red
    variance = 0.3 * np.maximum(flux, 0) + 0.7 * (1 + glow[:, :POINTS])
    noise = np.sqrt(variance) * generator.standard_normal((count, POINTS)) + residual[:, :POINTS]
    flux += darkness * noise / signal[:, None]
    return (flux * np.exp(generator.normal(5, 1.2, (count, 1)))).astype(np.float32)
