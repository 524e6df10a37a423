"""The dashboard in a real Chromium: what it shows, to whom, and what it never does."""

from __future__ import annotations

import time

import pytest

from edge_sdk.wire import payload
from server.settings.settings import Settings
from tests.contract.live import live_server
from tests.dashboard.access import admin_token
from tests.dashboard.conftest import HOSTILE
from tests.server.tasks import Site, ready, tiny_spec, update_body, wait_until

PHONE = (360, 740)
LIVE = "document.querySelector('#connection').className === 'live'"
CHARTS = "document.querySelectorAll('svg.chart').length"
FASTER = "const slow = window.setTimeout; window.setTimeout = (f, ms) => slow(f, ms / 20);"
HIDE = """
Object.defineProperty(document, 'hidden', {value: true, configurable: true});
document.dispatchEvent(new Event('visibilitychange'));
"""


@pytest.fixture
def page(board, look):
    found = look(board.address)
    found.wait_for(LIVE)
    return found


def test_a_task_is_shown_with_its_charts_and_without_a_complaint(page):
    assert page.evaluate(CHARTS) == 3
    words = page.text()
    for part in ("words", "tiny-llama", "3 of 5", "round 4 of 5 is running", "1.333", "k = 2 of 8"):
        assert part in words
    assert page.complaints() == []


def test_the_token_leaves_the_address_and_travels_in_no_url(page, board):
    assert page.evaluate("location.href") == f"{board.url}/dashboard"
    assert page.evaluate("history.length") <= 2
    assert page.evaluate("Object.values(sessionStorage)") == [board.token]
    assert page.evaluate("localStorage.length + document.cookie.length") == 0
    assert not [url for url in page.requests() if board.token in url]


def test_everything_comes_from_the_server_itself(page, board):
    assert {url.startswith(f"{board.url}/") for url in page.requests()} == {True}


def test_text_of_a_device_is_shown_as_text(page):
    waiting = page.text("#now table")
    assert HOSTILE in waiting
    assert f"set aside: too far from the others {HOSTILE}" in page.text("#left-out")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0


def test_code_could_not_get_in_as_text(page):
    """The browser itself refuses what would turn a text into markup or code."""
    for attempt in ("body.innerHTML = '<b>'", "body.setAttribute('onclick', 'window.hacked=1')"):
        tried = f"try {{ document.{attempt}; 0 }} catch (error) {{ error.name }}"
        assert page.evaluate(tried) == "TypeError"


def test_every_chart_has_a_name_and_its_numbers_in_a_table(page):
    for place, numbers in (
        ("loss", ["mean loss", "4.000", "2.000", "1.333"]),
        ("bytes", ["at all ranks", "saved"]),
        ("coverage", ["rank 7", "untrained for"]),
        ("fleet", ["training takes", "0.3 s"]),
    ):
        chart = f"#{place} svg.chart"
        if place != "fleet":
            assert len(page.evaluate(f"document.querySelector('{chart}').ariaLabel")) > 20
        page.evaluate(f"document.querySelector('#{place} details').open = true")
        words = page.text(f"#{place} details table")
        assert [number for number in numbers if number not in words] == []


def test_a_version_shows_how_it_did_on_devices_once_enough_have_tried_it(page):
    rows = "[...document.querySelectorAll('#versions tbody tr')].map(x => x.innerText)"
    newest, second, *_ = page.evaluate(rows)
    assert "75 % of 4 devices" in second
    assert "2.500 → 2.250" in second
    assert "devices\t" not in newest.replace("all devices", "")
    assert "2.250" not in newest


def test_every_mark_of_a_chart_says_its_numbers(page):
    titles = page.evaluate("[...document.querySelectorAll('.chart title')].map(x => x.textContent)")
    assert "Round 3: mean 1.333, from 1.333 to 1.333" in titles
    assert len([title for title in titles if title.startswith("Round 2, rank ")]) == 8


@pytest.mark.parametrize("is_dark", [False, True])
def test_a_phone_shows_it_all_without_scrolling_sideways(board, look, is_dark):
    page = look(board.address, size=PHONE, is_dark=is_dark)
    page.wait_for(LIVE)
    page.evaluate("document.querySelectorAll('details').forEach(x => { x.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    outside = """[...document.querySelectorAll('main *')].filter(x => !x.closest('.scroll') &&
        x.getBoundingClientRect().right > innerWidth + 0.5).length"""
    assert page.evaluate(outside) == 0
    assert page.evaluate("document.querySelectorAll('.scroll').length") > 5


@pytest.mark.parametrize("is_dark", [False, True])
def test_text_stands_out_from_its_ground(board, look, is_dark):
    """WCAG AA: a contrast of 4.5 for text, 3 for marks."""
    page = look(board.address, is_dark=is_dark)
    page.wait_for(LIVE)
    style = "getComputedStyle(document.documentElement)"
    names = ("--page", "--card", "--text", "--quiet", "--accent", "--bad", "--bad-soft")
    colour = {x: page.evaluate(f"{style}.getPropertyValue('{x}')") for x in names}
    for text in ("--text", "--quiet", "--accent", "--bad"):
        assert _contrast(colour[text], colour["--card"]) >= 4.5, text
    assert _contrast(colour["--quiet"], colour["--page"]) >= 4.5
    assert _contrast(colour["--bad"], colour["--bad-soft"]) >= 4.5
    is_light_ground = _brightness(colour["--page"]) > 0.5
    assert is_light_ground is not is_dark


def test_the_other_task_is_one_click_away_and_its_address_can_be_shared(page, board):
    page.evaluate("document.querySelector('a.task[href=\"#task=sums\"]').click()")
    page.wait_for("document.querySelector('#task-name').textContent === 'sums'")
    assert page.evaluate("location.hash") == "#task=sums"
    assert "No round has begun" in page.text("#now")


def test_a_task_that_is_not_there_falls_back_to_one_that_is(board, look):
    page = look(f"{board.address}&task=no-such")
    page.wait_for(LIVE)
    assert page.text("#task-name") == "words"
    assert page.evaluate("location.hash") == ""


def test_without_a_token_the_page_asks_for_one_and_takes_it(board, look):
    page = look(f"{board.url}/dashboard")
    page.wait_for("!document.querySelector('#sign-in').hidden")
    assert page.evaluate("document.querySelector('#board').hidden")
    page.evaluate(f"document.querySelector('#token').value = ' {board.token} '")
    page.evaluate("document.querySelector('#sign-in button').click()")
    page.wait_for(LIVE)
    assert page.evaluate("document.querySelector('#sign-in').hidden")


@pytest.mark.parametrize("token", ["edge_wrong", "w%C3%B6rds"])
def test_a_wrong_token_is_told_and_forgotten(board, look, token):
    page = look(f"{board.url}/dashboard#token={token}")
    page.wait_for("document.querySelector('#sign-in-problem').textContent")
    assert "token" in page.text("#sign-in-problem")
    assert page.evaluate("sessionStorage.length") == 0


def test_signing_out_forgets_token_and_numbers(page):
    page.evaluate("document.querySelector('#sign-out').click()")
    assert page.evaluate("sessionStorage.length") == 0
    assert page.evaluate("document.querySelector('#board').hidden")


def test_the_countdown_goes_on_between_two_answers(page):
    first = page.wait_for("document.querySelector('#countdown').textContent")
    page.evaluate("window.fetch = () => new Promise(() => {})")
    page.wait_for(f"document.querySelector('#countdown').textContent !== '{first}'")


def test_a_hidden_page_asks_nothing_and_one_that_is_seen_again_asks_at_once(board, look):
    page = look(board.address, script=FASTER)
    page.wait_for(LIVE)
    page.evaluate(HIDE)
    before = len(page.requests())
    time.sleep(0.5)  # of three intervals at this speed
    assert len(page.requests()) == before
    page.evaluate(HIDE.replace("true", "false", 1))
    wait_until(lambda: len(page.requests()) > before)


def test_an_open_table_stays_open_and_keeps_the_focus_when_numbers_change(page):
    page.evaluate("document.querySelector('#loss details').open = true")
    page.evaluate("document.querySelector('#loss summary').focus()")
    page.evaluate(
        "import('/dashboard/elements.js').then(({refill, folded}) =>"
        " refill(document.querySelector('#loss'), [folded('Show the numbers', 'new')]))"
    )
    assert page.evaluate("document.querySelector('#loss details').open")
    assert page.evaluate("document.activeElement === document.querySelector('#loss summary')")


def test_numbers_beyond_all_measure_are_drawn_in_finite_time(page):
    pairs = "[[1e308, -1e308], [1e16, 1e16 + 4], [0, 0], [-5, -5], [1e-308, 2e-308]]"
    drawn = page.evaluate(
        f"""import("/dashboard/charts.js").then(({{lossChart}}) => {pairs}.map((pair) =>
            lossChart(400, pair.map((loss, i) => ({{round_number: i + 1, loss, lowest_loss: loss,
            highest_loss: loss}}))).outerHTML))"""
    )
    assert len(drawn) == 5
    assert not [markup for markup in drawn if "NaN" in markup or "Infinity" in markup]


def test_the_page_follows_a_round_and_says_when_the_server_is_gone(tmp_path, look):
    site = Site(tmp_path / "state")
    spec = site.add_task(tiny_spec("words", cohort_size=2, quorum=2))
    for name in ("a", "b"):
        site.add_device(name)
    site.clock.now = time.time()
    with live_server(Settings(state=site.settings.state)) as url:
        page = look(f"{url}/dashboard#token={admin_token(site, 'read')}", script=FASTER)
        page.wait_for(LIVE)
        assert "No round has begun" in page.text("#now")
        site.coordinator.check_in("a", "words", ready())
        page.wait_for("document.querySelector('#now').innerText.includes('0 of 2')")
        site.train("a", spec, 1)
        page.wait_for("document.querySelector('#now').innerText.includes('1 of 2')")
        site.train("b", spec, 2)
        page.wait_for("document.querySelector('#highlights').innerText.includes('1 of 3')")
    page.wait_for("document.querySelector('#connection').className === 'lost'")
    assert "No answer from the server; the numbers are those of" in page.text("#connection")
    assert page.evaluate("document.body.classList.contains('stale')")
    site.store.close()


def test_a_refused_update_is_shown_with_its_reason(tmp_path, look):
    import requests

    site = Site(tmp_path / "state")
    spec = site.add_task(tiny_spec("words"))
    with live_server(Settings(state=site.settings.state)) as url:
        body = update_body(spec, 1, seed=1)
        digest = {"Content-Digest": payload.content_digest(body)}
        path = f"{url}/v1/tasks/words/rounds/1/update"
        assert requests.put(path, data=body, headers=digest, timeout=10).status_code == 401
        page = look(f"{url}/dashboard#token={admin_token(site, 'read')}")
        page.wait_for(LIVE)
        assert "not authorized" in page.text("#refusals")
    site.store.close()


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_brightness(one), _brightness(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _brightness(colour: str) -> float:
    """Relative luminance of ``#rrggbb``."""
    parts = [int(colour.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
