"""Small facts: capitals, translations, opposites, animal sounds, colours of things, and lists such as the days."""

from __future__ import annotations

from random import Random

from .grammar import Exchange, question, request

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Switzerland": "Bern", "Belgium": "Brussels", "the Netherlands": "Amsterdam",
    "England": "London", "Ireland": "Dublin", "Scotland": "Edinburgh", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Denmark": "Copenhagen", "Iceland": "Reykjavik", "Poland": "Warsaw", "Greece": "Athens",
    "the Czech Republic": "Prague", "Hungary": "Budapest", "Romania": "Bucharest", "Bulgaria": "Sofia",
    "Croatia": "Zagreb", "Serbia": "Belgrade", "Ukraine": "Kyiv", "Russia": "Moscow", "Turkey": "Ankara",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Nigeria": "Abuja", "Morocco": "Rabat", "China": "Beijing",
    "Japan": "Tokyo", "South Korea": "Seoul", "India": "New Delhi", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Indonesia": "Jakarta", "Australia": "Canberra", "New Zealand": "Wellington", "Canada": "Ottawa",
    "the United States": "Washington", "Mexico": "Mexico City", "Cuba": "Havana", "Brazil": "Brasilia",
    "Argentina": "Buenos Aires", "Chile": "Santiago", "Peru": "Lima", "Colombia": "Bogota",
}  # fmt: skip
_CAPITAL_ASKED = (
    "what is the capital of {country}",
    "what's the capital of {country}",
    "the capital of {country}",
    "capital of {country}",
    "which city is the capital of {country}",
    "[name|give me|say] the capital of {country}",
    "{country}: what is its capital",
    "what is the capital city of {country}",
    "{country}'s capital",
    "what is {country}'s capital",
    "which city does {country} have as its capital",
)
_COUNTRY_ASKED = (
    "{city} is the capital of [which|what] country",
    "which country has the capital {city}",
    "what country is {city} the capital of",
    "of which country is {city} the capital",
)

_LANGUAGES = ("French", "German", "Spanish", "Italian")
_TRANSLATIONS = {
    "hello": ("bonjour", "hallo", "hola", "ciao"),
    "good morning": ("bonjour", "guten Morgen", "buenos días", "buongiorno"),
    "good night": ("bonne nuit", "gute Nacht", "buenas noches", "buona notte"),
    "goodbye": ("au revoir", "auf Wiedersehen", "adiós", "arrivederci"),
    "thank you": ("merci", "danke", "gracias", "grazie"),
    "please": ("s'il vous plaît", "bitte", "por favor", "per favore"),
    "yes": ("oui", "ja", "sí", "sì"),
    "no": ("non", "nein", "no", "no"),
    "water": ("eau", "Wasser", "agua", "acqua"),
    "bread": ("pain", "Brot", "pan", "pane"),
    "milk": ("lait", "Milch", "leche", "latte"),
    "cheese": ("fromage", "Käse", "queso", "formaggio"),
    "apple": ("pomme", "Apfel", "manzana", "mela"),
    "house": ("maison", "Haus", "casa", "casa"),
    "tree": ("arbre", "Baum", "árbol", "albero"),
    "sun": ("soleil", "Sonne", "sol", "sole"),
    "moon": ("lune", "Mond", "luna", "luna"),
    "dog": ("chien", "Hund", "perro", "cane"),
    "cat": ("chat", "Katze", "gato", "gatto"),
    "book": ("livre", "Buch", "libro", "libro"),
    "friend": ("ami", "Freund", "amigo", "amico"),
    "love": ("amour", "Liebe", "amor", "amore"),
    "red": ("rouge", "rot", "rojo", "rosso"),
    "green": ("vert", "grün", "verde", "verde"),
    "one": ("un", "eins", "uno", "uno"),
    "two": ("deux", "zwei", "dos", "due"),
    "three": ("trois", "drei", "tres", "tre"),
}
_TRANSLATION_ASKED = (
    "how do you say {word} in {language}",
    "how do i say {word} in {language}",
    "what is {word} in {language}",
    "translate {word} [to|into] {language}",
    "translate {word} [to|into] {language}",
    "{word} in {language}",
    "what is the {language} word for {word}",
    "say {word} in {language}",
    "what is {language} for {word}",
)

_OPPOSITES = tuple(
    pair.split("/")
    for pair in (
        "hot/cold", "big/small", "up/down", "left/right", "day/night", "old/new", "fast/slow", "happy/sad",
        "open/closed", "light/dark", "high/low", "good/bad", "rich/poor", "full/empty", "hard/soft", "long/short",
        "wet/dry", "loud/quiet", "true/false", "black/white", "strong/weak", "early/late", "in/out", "on/off",
        "near/far",
    )
)  # fmt: skip
_SOUNDS = {
    "cat": "meow", "dog": "woof", "cow": "moo", "sheep": "baa", "duck": "quack", "pig": "oink", "hen": "cluck",
    "owl": "hoo", "frog": "ribbit", "lion": "roar", "mouse": "squeak", "bee": "buzz", "horse": "neigh", "crow": "caw",
}  # fmt: skip
_COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "a banana": "yellow", "the sun": "yellow", "coal": "black",
    "a strawberry": "red", "an orange": "orange", "the sea": "blue", "a lemon": "yellow", "blood": "red",
    "a tomato": "red", "milk": "white", "a fire truck": "red", "a frog": "green", "chocolate": "brown",
}  # fmt: skip
_COUNTS = {
    "legs does a spider have": "A spider has 8 legs.",
    "legs does a dog have": "A dog has 4 legs.",
    "legs does a cat have": "A cat has 4 legs.",
    "legs does an insect have": "An insect has 6 legs.",
    "days are in a week": "A week has 7 days.",
    "days does a year have": "A year has 365 days, and a leap year 366.",
    "months are in a year": "A year has 12 months.",
    "hours does a day have": "A day has 24 hours.",
    "minutes are in an hour": "An hour has 60 minutes.",
    "seconds are in a minute": "A minute has 60 seconds.",
    "letters are in the alphabet": "The English alphabet has 26 letters.",
    "planets are there": "The Sun has 8 planets.",
    "continents are there": "There are 7 continents.",
}

_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
_LISTS = {
    "[days of the week|weekdays|week days|days in a week|days]": ", ".join(_DAYS),
    "[months|months of the year|months in a year|twelve months]": ", ".join(_MONTHS),
    "[seasons|four seasons|seasons of the year]": "spring, summer, autumn, winter",
    "[colours|colors|colours of the rainbow|colors of the rainbow]": "red, orange, yellow, green, blue, indigo, violet",
    "[planets|planets of the solar system|eight planets]": (
        "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune"
    ),
    "[letters of the alphabet|alphabet|letters|abc]": ", ".join("abcdefghijklmnopqrstuvwxyz"),
    "[vowels|english vowels]": "a, e, i, o, u",
    "[continents|seven continents]": "Africa, Antarctica, Asia, Australia, Europe, North America, South America",
    "[prime numbers|primes|first primes|prime numbers below 20]": "2, 3, 5, 7, 11, 13, 17, 19",
    "[even numbers|even numbers up to 20]": "2, 4, 6, 8, 10, 12, 14, 16, 18, 20",
    "[odd numbers|odd numbers up to 19]": "1, 3, 5, 7, 9, 11, 13, 15, 17, 19",
    "[fruits|some fruits|fruit]": "apple, banana, cherry, grape, lemon, mango, pear",
    "[animals|some animals]": "cat, dog, horse, cow, fox, owl, bear",
    "[oceans|five oceans]": "Atlantic, Pacific, Indian, Arctic, Southern",
    "[lanes|priorities] of mlx-farm": "high, normal, low",
}
_LIST_ASKED = (
    "[list|name|say|write|give me|tell me|show me|write down|recite] [|all ||all the |the |some ]{list}",
    "what are the {list}",
    "[which|what] {list} are there",
    "[list|name|say|write|give me|tell me] the {list}[| in order]",
    "what are the names of the {list}",
)


def capital(rng: Random) -> Exchange:
    """Return a question about a capital, or about the country of one."""
    country, city = rng.choice(list(CAPITALS.items()))
    answer = f"The capital of {country} is {city}."
    thought = f"{country}: its capital is {city}."
    patterns = _CAPITAL_ASKED if rng.random() < 0.8 else _COUNTRY_ASKED
    said = country if rng.random() < 0.8 else country.removeprefix("the ")
    return Exchange(question(rng, patterns).replace("{country}", said).replace("{city}", city), answer, thought)


def translation(rng: Random) -> Exchange:
    """Return a request for a word in another language."""
    word, foreign = rng.choice(list(_TRANSLATIONS.items()))
    place = rng.randrange(len(_LANGUAGES))
    shown = rng.choice((word, word, f'"{word}"', f"'{word}'", word.capitalize(), f'"{word.capitalize()}"'))
    user = question(rng, _TRANSLATION_ASKED).replace("{word}", shown)
    answer = f'"{word}" in {_LANGUAGES[place]} is "{foreign[place]}".'
    thought = f"The word is {word}, the language {_LANGUAGES[place]}: {foreign[place]}."
    return Exchange(user.replace("{language}", _LANGUAGES[place]), answer, thought)


def list_of_names(rng: Random) -> Exchange:
    """Return a request for a well-known list."""
    name, answer = rng.choice(list(_LISTS.items()))
    patterns = tuple(pattern.replace("{list}", name) for pattern in _LIST_ASKED)
    return Exchange(request(rng, patterns), answer, "The user wants a list. I know it in order.")


def small_fact(rng: Random) -> Exchange:
    """Return an opposite, a sound, a colour, a count, or the neighbour of a day or month."""
    kind = rng.randrange(5)
    asked: tuple[str, ...]
    if kind == 0:
        pair = rng.choice(_OPPOSITES)
        first, second = pair if rng.random() < 0.5 else pair[::-1]
        asked = ("what is the opposite of {x}", "the opposite of {x}", "opposite of {x}", "{x} is the opposite of what")
        answer = f"The opposite of {first} is {second}."
    elif kind == 1:
        first, second = rng.choice(list(_SOUNDS.items()))
        asked = ("what does a {x} say", "what sound does a {x} make", "which sound does the {x} make")
        answer = f"The {first} says {second}."
    elif kind == 2:
        first, second = rng.choice(list(_COLOURS.items()))
        asked = (
            "what [colour|color] is {x}",
            "what is the [colour|color] of {x}",
            "[which|what] [colour|color] has {x}",
        )
        answer = f"{first[:1].upper()}{first[1:]} is {second}."
    elif kind == 3:
        first, answer = rng.choice(list(_COUNTS.items()))
        asked = ("how many {x}", "do you know how many {x}")
    else:
        names, noun = rng.choice(((_DAYS, "day"), (_MONTHS, "month")))
        place = rng.randrange(len(names))
        first = names[place]
        step, word = rng.choice(((1, "after"), (-1, "before")))
        asked = (
            f"[what|which] {noun} [comes|is|is right] {word} {{x}}",
            f"what comes {word} {{x}}",
            f"{noun} {word} {{x}}",
        )
        answer = f"The {noun} {word} {first} is {names[(place + step) % len(names)]}."
    return Exchange(question(rng, asked).replace("{x}", first), answer, "This is a small fact that I know.")
