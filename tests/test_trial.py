"""When a drafter that does not pay is asked again, and what is made of its answers."""

import pytest

from parallel_decode.engine import Verified
from parallel_decode.engine.draft_tree import NO_DRAFT, DraftTree
from parallel_decode.speculation.calibration import Calibration
from parallel_decode.speculation.draft_time import DraftTime
from parallel_decode.speculation.progress import LEAST, Progress
from parallel_decode.speculation.trial import STEPS, Trial
from parallel_decode.speculation.watched_drafts import WATCHED, WatchedDrafts
from tests.test_controller import Said

CHAIN = DraftTree.chain([1, 2, 3, 4, 5, 6])


def test_a_trial_ends_where_nothing_is_proposed():
    trial = Trial(patience=3)
    assert trial.asks()
    trial.drafted(is_computed=False, has_proposed=False, pays=False)
    assert trial.is_over and not trial.pays


def test_watched_drafts_are_waited_for_once():
    trial = Trial(patience=3)
    assert trial.asks()
    trial.drafted(is_computed=False, has_proposed=True, pays=False)
    assert [trial.asks() for _ in range(4)] == [False, False, False, True]
    trial.drafted(is_computed=False, has_proposed=True, pays=True)
    assert trial.is_over and not trial.pays  # nothing was computed, so nothing was proved


@pytest.mark.parametrize("pays", [False, True])
def test_computed_drafts_are_judged_after_some_steps(pays):
    trial = Trial(patience=3)
    for step in range(STEPS):
        assert trial.asks() and not trial.is_over, step
        trial.drafted(is_computed=True, has_proposed=True, pays=pays)
        trial.saved(-1.0)
    assert trial.is_over and trial.pays == pays


def test_what_saves_time_is_not_given_up():
    trial = Trial(patience=3)
    for _ in range(3 * STEPS):
        trial.drafted(is_computed=True, has_proposed=True, pays=False)
        trial.saved(1.0)
        assert trial.asks() and not trial.is_over
    trial.saved(-100.0)
    trial.drafted(is_computed=True, has_proposed=True, pays=False)
    assert trial.is_over and not trial.pays


def verified(branches, gained) -> list[Verified]:
    drafts = [CHAIN if tokens else NO_DRAFT for tokens in gained]
    paths = [list(range(tokens)) for tokens in gained]
    return [Verified(*entry) for entry in zip(branches, drafts, paths, strict=True)]


def test_evenness_is_that_of_the_slowest():
    branches, progress = [Said() for _ in range(4)], Progress()
    assert progress.evenness == 1.0
    for _ in range(200):
        progress.note(verified(branches, [3, 3, 3, 3]))
    assert progress.evenness == pytest.approx(1.0)
    for _ in range(200):
        progress.note(verified(branches, [2, 3, 4, 3]))
    assert progress.evenness == pytest.approx(2 / 3, abs=1e-6)
    for _ in range(200):
        progress.note(verified(branches, [0, 4, 4, 4]))
    assert progress.evenness == LEAST
    progress.forget(branches[0])
    progress.note(verified(branches[1:], [4, 4, 4]))
    assert progress.evenness == pytest.approx(1.0, abs=0.01)


def test_of_a_new_branch_what_holds_for_all_is_expected():
    branches, progress = [Said() for _ in range(2)], Progress()
    for _ in range(50):
        progress.note(verified(branches, [4, 4]))
    progress.note(verified([*branches, Said()], [4, 4, 0]))
    assert progress.evenness > 0.9


def test_a_first_call_after_a_pause_says_little():
    taken = DraftTime()
    taken.note(8, 9.0, is_cold=True)
    assert taken.predicted(8) == pytest.approx(9.0)  # as long as there is nothing else
    for _ in range(5):
        taken.note(8, 2.0, is_cold=False)
        taken.note(8, 9.0, is_cold=True)
    assert taken.predicted(8) == pytest.approx(2.0)


def test_drafts_are_judged_as_far_as_their_branches_have_come():
    branch, watched = Said(), WatchedDrafts()
    watched.watch(branch, CHAIN)
    branch.tokens.append(1)
    assert watched.judge([branch]) == []
    branch.tokens[:] = CHAIN.tokens[:WATCHED].tolist()
    [judged] = watched.judge([branch])
    # Of the others nothing is known yet.
    assert judged.path == list(range(WATCHED)) and judged.depth == WATCHED
    calibration = Calibration()
    calibration.note([judged])
    assert calibration.num_tried == WATCHED
    assert watched.judge([branch]) == []


def test_a_branch_that_leaves_its_draft_judges_all_of_it():
    branch, watched = Said(), WatchedDrafts()
    watched.watch(branch, CHAIN)
    branch.tokens += [1, 9]
    [judged] = watched.judge([branch])
    assert judged.path == [0] and judged.depth >= len(CHAIN)
