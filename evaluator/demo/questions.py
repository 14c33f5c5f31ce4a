"""What the manager and her colleagues ask: good questions, and some that end badly."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question of a user in a session. `scripted`: always played by the rules, so that it ends as it should."""

    text: str
    user: str
    session: str
    scripted: bool = False


def _asked(user: str, session: str, *texts: str, scripted: bool = False) -> list[Question]:
    return [Question(text=text, user=user, session=session, scripted=scripted) for text in texts]


QUESTIONS = [
    *_asked(
        "maria",
        "monday-review",
        "Where are our customers least satisfied, and what should we do about it?",
        "Who has too much on their desk?",
        "Are we getting busier? Compare last week with the weeks before.",
        "Which urgent tickets have been open the longest?",
        "Which categories are reopened most often?",
    ),
    *_asked(
        "jonas",
        "staffing",
        "How is the workload spread over the team?",
        "Which agent has the longest resolution time?",
        "How fast is our first response, by priority?",
        "Which channel should we staff first?",
        "Where is the backlog of open tickets largest?",
    ),
    *_asked(
        "priya",
        "product-sync",
        "Which product causes the most tickets?",
        "Is CSAT for billing really the lowest?",
        "What is the trend of new tickets?",
    ),
    *_asked(
        "maria",
        "friday-doubts",
        "How do I motivate the team?",
        "Any ideas for next quarter?",
        "Please export the weekly report.",
        "Who opened ticket T-0042?",
        scripted=True,
    ),
    *_asked(
        "jonas",
        "night-shift",
        "Compare us with 2023.",
        "Keep checking which channel is behind.",
        "Tell me everything.",
        "In general, are we doing well?",
        scripted=True,
    ),
]
