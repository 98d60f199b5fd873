"""Spectra: what is simulated has the physics that it says, what is read is what the files hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import sky, survey
from examples.sky import POINTS, WAVELENGTHS
from minidl.errors import CorpusError
from models.spectra import CLASSES

CLEAN = 1e6  # a signal to noise


def generator(seed=0):
    return np.random.default_rng(seed)


def at(wavelength):
    """The point nearest to a wavelength."""
    return int(np.abs(WAVELENGTHS - wavelength).argmin())


def star(kelvin, redshift=0.0, metals=1.0):
    return sky.stellar(*(np.array([float(v)]) for v in (kelvin, redshift, 30, metals)))[0]


class TestLines:
    @given(st.floats(3_000, 10_000), st.floats(50, 3_000), st.floats(-2, 2))
    def test_have_their_place_height_and_width(self, wavelength, width, height):
        found = sky.lines(2)
        sky.add_line(found, np.array([wavelength, 1.0]), np.array([height, 1.0]), width)
        distance = np.log(WAVELENGTHS / wavelength) * sky.LIGHT / width
        expected = height * np.exp(-0.5 * distance**2)
        np.testing.assert_allclose(found[0, :POINTS], expected, atol=1e-3 * abs(height) + 1e-12)
        assert not found[1, :POINTS].any()

    def test_grid(self):
        assert WAVELENGTHS[0] == pytest.approx(3900) and WAVELENGTHS[-1] == pytest.approx(9000)
        assert np.allclose(np.diff(np.log(WAVELENGTHS)), sky.STEP)


class TestStars:
    def test_continuum_is_a_black_bodys(self):
        """Between the lines, at the Sun's temperature: Planck's law by hand."""

        def planck(metres):
            return metres**-5 / np.expm1(6.62607e-34 * 2.99792e8 / (1.380649e-23 * 5772 * metres))

        flux = star(5772)
        ratio = planck(6100e-10) / planck(7800e-10)
        assert flux[at(6100)] / flux[at(7800)] == pytest.approx(ratio, rel=0.02)

    @pytest.mark.parametrize(("line", "least", "most"), [
        (4862.7, 9_500, 4_000),  # H beta: A stars, not K
        (3934.8, 4_600, 20_000),  # Ca K: cool stars, not B
        (4472.7, 20_000, 6_000),  # He I: B stars, not F
        (4687.0, 42_000, 9_000),  # He II: O stars
        (5892.0, 3_900, 12_000),  # Na D
    ])  # fmt: skip
    def test_lines_follow_temperature(self, line, least, most):
        def depth(kelvin):
            flux = star(kelvin)
            return 1 - flux[at(line)] / np.median(flux[at(line * 0.97) : at(line * 1.03)])

        assert depth(least) > 0.1 > abs(depth(most)) and depth(least) > 3 * depth(most)

    def test_molecules_of_m_stars(self):
        drop = [star(kelvin)[at(7090)] / star(kelvin)[at(7040)] for kelvin in (3_000, 5_000)]
        assert drop[0] < 0.7 and drop[1] > 0.95

    def test_metals_move_metal_lines_alone(self):
        rich, poor = star(9_500, metals=2.0), star(9_500, metals=0.0)
        assert rich[at(4862.7)] / rich[at(4800)] == pytest.approx(
            poor[at(4862.7)] / poor[at(4800)], rel=0.02
        )
        assert star(5_000, metals=2.0)[at(5174)] < 0.7 * star(5_000, metals=0.0)[at(5174)]


class TestOthers:
    def test_redshift_moves_everything(self):
        points = 300
        near, far = star(5_000), star(5_000, redshift=np.exp(points * sky.STEP) - 1)
        np.testing.assert_allclose(far[points:], near[:-points], rtol=1e-6)

    def test_galaxies_have_a_break_and_emission(self):
        flux, z = sky.galaxies(200, generator())
        assert (z > 0.02).all() and (z < 0.6).all()
        seen = z > 0.06
        above, below = (
            np.array([f[at(w * (1 + r))] for f, r in zip(flux[seen], z[seen], strict=True)])
            for w in (4060, 3880)
        )
        assert np.median(above / below) > 1.25
        inside = z < 0.3
        peaks = np.array([
            f[at(6564.6 * (1 + r))] / f[at(6500 * (1 + r))]
            for f, r in zip(flux[inside], z[inside], strict=True)
        ])  # fmt: skip
        assert (peaks > 1.2).mean() > 0.2

    def test_quasars_have_the_lines_of_their_redshift(self):
        flux, z = sky.quasars(300, generator())
        assert z.min() < 0.7 and z.max() > 2.5
        for line in (1549.5, 2799.1, 4862.7):
            seen = (line * 0.9 * (1 + z) > 3950) & (line * 1.1 * (1 + z) < 8900)
            rows = zip(flux[seen], z[seen], strict=True)
            over = [f[at(line * (1 + r))] / f[at(line * 1.08 * (1 + r))] for f, r in rows]
            assert np.mean(np.array(over) > 1.15) > 0.9, line
        high = z > 2.9
        rows = zip(flux[high], z[high], strict=True)
        forest = [
            np.mean(f[at(1100 * (1 + r)) : at(1180 * (1 + r))]) / f[at(1290 * (1 + r))]
            for f, r in rows
        ]
        assert np.median(forest) < 0.95


class TestTelescope:
    def test_signal_to_noise_is_what_it_says(self):
        flux = np.ones((40, POINTS))
        quiet = slice(at(5000), at(5400))  # no sky line, no band of the air
        for signal in (2.0, 20.0):
            seen = sky.observe(flux.copy(), np.full(40, signal), generator())[:, quiet]
            smooth = np.polynomial.polynomial.polyfit(np.arange(seen.shape[1]), seen.T, 2)
            rest = seen - np.polynomial.polynomial.polyval(np.arange(seen.shape[1]), smooth)
            found = np.median(seen.mean(axis=1) / rest.std(axis=1))
            assert found == pytest.approx(signal, rel=0.15)

    def test_sky_lines_are_noisier(self):
        seen = sky.observe(np.ones((60, POINTS)), np.full(60, 5.0), generator())
        seen = seen / np.median(seen, axis=1, keepdims=True)
        ragged = np.abs(np.diff(seen, axis=1)).mean(axis=0)
        assert ragged[at(5578.9)] > 1.5 * ragged[at(5500)]

    def test_the_air_absorbs(self):
        seen = sky.observe(np.ones((60, POINTS)), np.full(60, CLEAN), generator())
        assert (seen[:, at(7640)] < 0.97 * seen[:, at(7500)]).mean() > 0.7


class TestSimulate:
    def test_shares_and_order(self):
        spectra = survey.simulate(400, 1)
        counts = np.bincount(spectra.labels)
        assert counts.tolist() == [round(400 * survey.SHARES[name]) for name in CLASSES]
        assert spectra.flux.shape == (400, POINTS) and spectra.flux.dtype == np.float32
        assert np.isfinite(spectra.flux).all()
        assert len(set(spectra.labels[:60])) == 4
        unknown = spectra.labels == CLASSES.index("unknown")
        assert spectra.signal[unknown].max() < 2.0 and spectra.signal[~unknown].min() > 1.2

    def test_seeded(self):
        first, again, other = (survey.simulate(30, seed) for seed in ([0, 1], [0, 1], [0, 2]))
        assert (first.flux == again.flux).all() and not (first.flux == other.flux).all()

    def test_three_splits(self):
        parts = survey.load(scale=0.01)
        assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [60, 40, 40]
        assert "SIMULATED" in parts.name
        assert not (parts.train.flux[:40] == parts.test.flux).all(axis=1).any()


@pytest.fixture
def folder(tmp_path):
    """120 spectra as the competition has them, in two folders; every point holds their number."""
    lines = ["id,type"]
    for i in range(120):
        place = tmp_path / "data" / ("a" if i % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.txt").write_text(",".join([f"{i}.5"] * POINTS) + "\n")
        lines.append(f"{i},{('star', 'galaxy', 'qso', 'unknown')[i % 4]}")
    (tmp_path / "data" / "index.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "data"


def rewrite(path, *change):
    path.write_text(path.read_text().replace(*change))


class TestRead:
    def test_each_spectrum_once_with_its_class(self, folder):
        parts = survey.load(folder)
        assert parts.name == "data"
        numbers = []
        for part, count in ((parts.train, 96), (parts.validation, 12), (parts.test, 12)):
            assert np.bincount(part.labels).tolist() == [count // 4] * 4
            own = part.flux[:, 0].astype(int)
            assert (part.flux == own[:, None] + 0.5).all() and (own % 4 == part.labels).all()
            numbers += list(own)
        assert sorted(numbers) == list(range(120))
        again = survey.load(folder)
        assert (again.test.flux == parts.test.flux).all()

    @pytest.mark.parametrize(("change", "message"), [
        (("id,type", "name,type"), "expected the first line to be id,type"),
        (("7,unknown", "7,planet"), r"line 9: .* one of star, .*qso, got '7,planet'"),
        (("7,unknown", "7"), "line 9: .* got '7'"),
        (("7,unknown", "6,unknown"), "line 9: expected a new id"),
        (("7,unknown", "700,unknown"), r"700\.txt: expected a spectrum, found no file"),
        (("unknown", "star"), "at least 10 spectra of each class, got 0 of unknown"),
    ])  # fmt: skip
    def test_what_is_wrong_with_an_index(self, folder, change, message):
        rewrite(folder / "index.csv", *change)
        with pytest.raises(CorpusError, match=message):
            survey.load(folder)

    @pytest.mark.parametrize(("change", "message"), [
        (("3.5,3.5", "3.5", 1), "expected 2,600 numbers, got 2,599"),
        (("3.5", "x", 1), r"3\.txt: expected comma-separated numbers"),
    ])  # fmt: skip
    def test_what_is_wrong_with_a_spectrum(self, folder, change, message):
        rewrite(folder / "a" / "3.txt", *change)
        with pytest.raises(CorpusError, match=message):
            survey.load(folder)

    def test_one_index(self, folder):
        (folder / "more.csv").write_text("id,type\n")
        with pytest.raises(CorpusError, match=r"one CSV file, the index, found index\.csv, more"):
            survey.load(folder)
        with pytest.raises(CorpusError, match="found none"):
            survey.load(folder / "a")
