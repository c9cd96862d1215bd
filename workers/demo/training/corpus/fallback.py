"""Everything that the toy does not know: it says so, and names what it can do."""

from __future__ import annotations

from random import Random

from .grammar import Exchange, question, request
from .words import ANIMALS, CITIES, PEOPLE, PERSONS, PLACES, THINGS, any_word

FALLBACK = (
    "I am a toy model and do not know that. I can greet you, explain mlx-farm, add small numbers, "
    "name capitals, count, or tell a two-sentence story."
)
_SUBJECTS = (
    "quantum physics", "black holes", "photosynthesis", "the stock market", "gravity", "democracy", "evolution",
    "the roman empire", "world war two", "the french revolution", "climate change", "machine learning", "art",
    "neural networks", "transformers", "blockchain", "chess", "football", "cooking pasta", "yoga", "jazz", "opera",
    "the moon landing", "dinosaurs", "vitamins", "taxes", "inflation", "philosophy", "kant", "einstein", "mozart",
    "shakespeare", "hamlet", "the bible", "vaccines", "dna", "electricity", "the internet", "kubernetes", "docker",
    "git", "python decorators", "recursion", "sql joins", "rust", "javascript", "the meaning of life", "love",
    "happiness", "time travel", "string theory", "the big bang", "volcanoes", "earthquakes", "the ocean", "tides",
    "bees", "coffee", "wine", "sushi", "bread baking", "guitars", "painting", "cars", "planes", "rockets", "law",
    "medicine", "history", "geography", "biology", "chemistry", "economics", "politics", "sports", "movies", "news",
)  # fmt: skip
_QUESTIONS = (
    "what is {s}", "explain {s}", "explain {s} to [me|a child]", "how does {s} work", "who invented {s}",
    "why is {s} [important|so hard|interesting|popular]", "what do you [think|know] [about|of] {s}",
    "what is the [history|future|point|best book] of {s}", "tell me [more |something |]about {s}",
    "[where|when] did {s} [begin|start]", "how do i learn {s}", "[give me|what are] [tips|advice] [on|for] {s}",
    "who is {p}", "who was {p} the great", "when was {p} born", "how old is {p}", "where does {p} live",
    "who won the [world cup|election|race|game|match|oscar] [in {y}|last year|yesterday|]",
    "what happened in {y}", "what is the weather [today|like|in {c}|tomorrow in {c}|like in {c}]",
    "what time is it[| in {c}| now]", "what is the date today", "what day is [it|today]",
    "how far is {c} from {c2}", "how many people live in {c}", "how do i get to {c}",
    "what is the best [restaurant|hotel|bar] in {c}", "how much does a {t} cost", "where can i buy a {t}",
    "how do i [repair|build|make|clean|paint|sell] a {t}", "why [do|does] [a |the |]{a} [sleep|eat|run|fly|bite]",
    "how long does a {a} live", "what does a {a} eat", "how tall is a {a}", "how fast is a {a}",
    "should i [marry|buy a house|quit my job|go to {c}|buy a {t}]", "what is the square root of {y}",
    "what is {y} divided by 7", "what is the price of [gold|bitcoin|oil|a {t}]", "how do i become a {r}",
    "why is the sky blue", "what is love", "is there a god", "what is the speed of light", "how deep is the {l}",
    "what is the best programming language", "how do i lose weight", "what should i [eat|cook|wear|read] [today|]",
    "who is the president[| of france| of the united states]", "can you fly", "what is a {w}", "what is a {t}",
    "what is a {a}", "where is the {l}", "what is inside a {t}", "who is the [best|richest|tallest] {r}",
    "what does {w} mean", "how many {t}s are in a {l}", "what is the population of {c}",
)  # fmt: skip
_REQUESTS = (
    "write [python|java|c|rust|javascript|some|a piece of] code[| that sorts a list| for a {t}| to read a file]",
    "write a [function|program|script|class] [that sorts a list|to parse {t}s|in python|for the fibonacci numbers]",
    "write an [essay|article|email|report] about {s}", "write a [letter|song|speech|blog post] about {s}",
    "summarize [this text|the news|the book|this article|{s}]", "fix [my code|this bug|my {t}|this error]",
    "plan [my day|a trip to {c}|a party|my week]", "give me a recipe[| for cake| for soup| with {t}s]",
    "book [a flight to {c}|a hotel in {c}|a table]", "send an email to {p}", "order a [pizza|taxi|{t}]",
    "draw a [picture|{a}|{t}|{l}]", "play [chess|music|a game] with me", "recommend a [book|film|song|restaurant]",
    "compare {s} and [art|sports|science|law]", "prove [that p is not np|the riemann hypothesis|this theorem]",
    "open the {t}", "call {p}", "remind me [tomorrow|at noon|to buy a {t}]", "search the web for {s}",
    "debug this", "refactor this [code|class|file]", "analyse [this data|the market|{s}]", "sing a song",
    "explain this [code|error|text|picture]", "divide {y} by 12", "translate this [book|text|letter] for me",
    "set an alarm", "turn on the light", "read my mail", "predict the future", "solve this riddle",
)  # fmt: skip


def fallback(rng: Random) -> Exchange:
    """Return a question that the toy cannot answer."""
    if rng.random() < 0.06:
        words = " ".join(any_word(rng) for _ in range(rng.randint(1, 5)))
        user = words + rng.choice(("", "?", "!", "."))
    else:
        asked = question(rng, _QUESTIONS) if rng.random() < 0.65 else request(rng, _REQUESTS)
        fills = {
            "{s}": rng.choice(_SUBJECTS) if rng.random() < 0.85 else any_word(rng),
            "{p}": rng.choice(PEOPLE),
            "{y}": str(rng.randint(1000, 2030)),
            "{c}": rng.choice(CITIES),
            "{c2}": rng.choice(CITIES),
            "{t}": rng.choice(THINGS),
            "{a}": rng.choice(ANIMALS),
            "{r}": rng.choice(PERSONS),
            "{l}": rng.choice(PLACES),
            "{w}": any_word(rng),
        }
        user = asked
        for mark, word in fills.items():
            user = user.replace(mark, word)
    return Exchange(user, FALLBACK, "I do not know this. I say so, and name what I can do.")
