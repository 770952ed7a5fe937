"""Every sentence of the embedded world: letters to an advice column, and what volunteers write back."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """What a letter may be about. ``key`` occurs in every tip for it and in no other sentence of an answer."""

    letters: tuple[str, ...]
    tips: tuple[str, ...]
    key: str


PROBLEMS = (
    Problem(
        ("I left my umbrella on the bus.", "My umbrella rode away on the bus without me."),
        ("Ask at the lost property office.", "Most umbrellas end up at the lost property office."),
        "lost property",
    ),
    Problem(
        ("The man next door plays the drums at midnight.", "I hear drums through the wall every night."),
        ("Agree on quiet hours over a cup of tea.", "Ring the bell and suggest some quiet hours."),
        "quiet hours",
    ),
    Problem(
        ("My fern drops its leaves.", "The fern on my desk is turning brown."),
        ("Move it into the shade and water it less.", "Give the plant more shade and a damp saucer."),
        "shade",
    ),
    Problem(
        ("I have an exam on Friday.", "My exam is near and the books are still closed."),
        ("Try the questions of past years first.", "Answer ten old questions every morning."),
        "questions",
    ),
    Problem(
        ("I lie awake until three.", "Sleep has not visited me for a week."),
        ("Leave your phone in the kitchen at night.", "Switch off the phone an hour before bed."),
        "phone",
    ),
    Problem(
        ("I forgot the birthday of my best friend.", "My best friend had a birthday and I missed it."),
        ("Send a late card with an honest line.", "Write a card by hand and bring it round."),
        "card",
    ),
    Problem(
        ("My bread never rises.", "Every loaf I bake is as flat as a plate."),
        ("Buy fresh yeast and keep the dough warm.", "Old yeast is weak, so open a new packet."),
        "yeast",
    ),
    Problem(
        ("My sister and I no longer speak.", "I had a quarrel with my sister in spring."),
        ("Call her and begin with what you miss.", "Be the first to call, even for a minute."),
        "call",
    ),
    Problem(
        ("I am new in this town and know nobody.", "We moved here in June and I have met no one."),
        ("Join a walking club and go twice.", "Look for a choir or a chess club nearby."),
        "club",
    ),
    Problem(
        ("The cat scratches our sofa.", "Our sofa is losing a war against the cat."),
        ("Put a scratching post beside it.", "A scratching post in the right corner helps."),
        "scratching post",
    ),
    Problem(
        ("My money is gone by the tenth of the month.", "I never know where my wages go."),
        ("Keep a notebook of what you spend.", "Write each purchase into a small notebook."),
        "notebook",
    ),
    Problem(
        ("I must give a speech at a wedding.", "They asked me for a wedding speech."),
        ("Tell one short story and raise your glass.", "Choose a single story and practise it aloud."),
        "story",
    ),
)

# What a writer may feel, and what meets it: each of these sentences holds its own feeling's word and no other's.
FEELINGS = {
    "sad": ("It is all right to be sad for a while.", "Being sad shows how much you care."),
    "angry": ("Anyone would be angry at that.", "You may be angry and still be fair."),
    "worried": ("Many people are worried by less.", "To be worried is to be awake to things."),
    "lonely": ("Feeling lonely is not a fault.", "A lonely week can end in one hour."),
    "ashamed": ("Nobody has to be ashamed of that.", "You are ashamed because you mean well."),
    "tired": ("No wonder that you are tired.", "Be kind to a tired mind."),
    "jealous": ("A jealous thought is only a thought.", "Even good people are jealous at times."),
    "confused": ("It is normal to be confused at first.", "You sound confused, and that will clear."),
}

FEELING_LINES = ("I feel {}.", "It makes me {}.", "I am {} about it.")

SMALL_TALK = (
    "The weather has been mild.",
    "I read your column every week.",
    "It is nearly noon as I write.",
    "The kettle is singing.",
    "My pen is almost empty.",
    "Our street is quiet today.",
    "I hope this letter finds you well.",
    "Please forgive my handwriting.",
)

NAMES = tuple(
    "Anna Boris Clara David Elena Frank Greta Henry Irene Jonas Karin Louis Maria Nora Oscar Paula Robert Sofia Thomas Vera".split()
)

OFF_TOPIC = (
    "My cousin collects old trains.",
    "The river here is very long.",
    "I once saw a whale.",
    "Soup is best in winter.",
    "Our office has a new carpet.",
    "There are many kinds of cheese.",
)

RUDE = (
    "What a silly letter.",
    "Only a fool would write this.",
    "Stop whining at once.",
    "That is a stupid thing to ask.",
)

RUDE_WORDS = ("silly", "fool", "whining", "stupid")

CHEERS = (
    "You can do it!",
    "Good luck!",
    "Take heart!",
    "I believe in you!",
    "All will be well!",
    "Write again soon!",
)
