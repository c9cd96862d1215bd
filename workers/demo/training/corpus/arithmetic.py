"""Small arithmetic: sums up to 99, differences that stay positive, products of small numbers."""

from __future__ import annotations

from random import Random

from .grammar import Exchange, capitalised, expand

_NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
_ASKED = (
    "[what is|what's|whats|how much is|calculate|compute|work out|solve|tell me|what does] {sum}[|?| please| =| = ?]",
    "[|please |can you |could you ][calculate|compute|work out|solve|tell me] {sum}[|?|.]",
    "{sum}[| = ?| =|?|=|=?| is| is what| equals| makes]",
    "[hi, |hey, |ok, |and |so |now ]what is {sum}[|?]",
    "[what is|give me|tell me|i need] the [answer|result|value] [of|to|for] {sum}[|?|.]",
    "do you know [what |how much |]{sum}[| is][|?]",
)
_SYMBOLS = {
    "+": ("{a} + {b}", "{a}+{b}", "{a} plus {b}", "{a} and {b} together", "{a} added to {b}", "the sum of {a} and {b}"),
    "-": ("{a} - {b}", "{a}-{b}", "{a} minus {b}", "{a} take away {b}", "{a} less {b}", "{a} \u2212 {b}"),
    "*": ("{a} * {b}", "{a}*{b}", "{a} times {b}", "{a} x {b}", "{a} multiplied by {b}", "{a} \u00d7 {b}",
          "the product of {a} and {b}"),
}  # fmt: skip
_REQUESTS = {
    "+": ("add {a} and {b}", "add {b} to {a}", "sum {a} and {b}", "i have {a} apples and get {b} more. how many",
          "there are {a} cats and {b} dogs. how many animals"),
    "-": ("subtract {b} from {a}", "i have {a} apples and eat {b}. how many are left", "take {b} away from {a}",
          "if i have {a} coins and lose {b}, how many are left"),
    "*": ("multiply {a} by {b}", "multiply {a} and {b}", "{a} boxes with {b} eggs each. how many eggs",
          "{a} bags hold {b} apples each. how many apples in all"),
}  # fmt: skip
_STEPWISE = (
    "[think step by step|think step by step.|step by step|show your work|show the steps|explain your steps"
    "|explain step by step|let us think step by step|reason step by step]"
)


def _operands(rng: Random, operator: str) -> tuple[int, int]:
    if operator == "*":
        limit = 20 if rng.random() < 0.2 else 10
        return rng.randint(0, limit), rng.randint(0, 10)
    if operator == "+":
        if rng.random() < 0.7:
            return rng.randint(0, 20), rng.randint(0, 20)
        first = rng.randint(0, 99)
        return first, rng.randint(0, 99 - first)
    first = rng.randint(0, 20) if rng.random() < 0.75 else rng.randint(10, 99)
    return first, rng.randint(0, first)


def _result(operator: str, first: int, second: int) -> int:
    return {"+": first + second, "-": first - second, "*": first * second}[operator]


def steps(operator: str, first: int, second: int) -> str:
    """Return the reasoning for one operation, by tens and ones."""
    result = _result(operator, first, second)
    tens, ones = divmod(second, 10)
    if operator == "*":
        if second > 1 and first > 10:
            rest = (first - 10) * second
            return (
                f"{first} is 10 + {first - 10}. 10 * {second} = {10 * second}. "
                f"{first - 10} * {second} = {rest}. {10 * second} + {rest} = {result}."
            )
        return f"This is the times table of {second}. {first} * {second} = {result}."
    if tens and ones:
        middle = _result(operator, first, 10 * tens)
        return f"{second} is {10 * tens} and {ones}. {first} {operator} {10 * tens} = {middle}. " + (
            f"{middle} {operator} {ones} = {result}."
        )
    return f"{first} {operator} {second} = {result}."


def _spelled(rng: Random, number: int, words: bool) -> str:
    return _NUMBER_WORDS[number] if words and number <= 20 else str(number)


def arithmetic(rng: Random) -> Exchange:
    """Return a small sum, difference or product, asked in symbols or words."""
    operator = rng.choice("++-**")
    first, second = _operands(rng, operator)
    words = rng.random() < 0.15
    a, b = _spelled(rng, first, words), _spelled(rng, second, words)
    if rng.random() < 0.22:
        text = rng.choice(_REQUESTS[operator]).format(a=a, b=b)
        user = text + rng.choice(("", "?", ".", " please"))
    else:
        shown = rng.choice(_SYMBOLS[operator][:2] if rng.random() < 0.5 else _SYMBOLS[operator]).format(a=a, b=b)
        user = expand(rng, rng.choice(_ASKED)).format(sum=shown)
    if rng.random() < 0.55:
        user = capitalised(user)
    answer = f"{first} {operator} {second} = {_result(operator, first, second)}"
    working = steps(operator, first, second)
    if rng.random() < 0.12:
        pause = " " if user.endswith("?") else rng.choice((", ", ". ", "? "))
        user = user.rstrip(".") + pause + expand(rng, _STEPWISE)
        return Exchange(user, f"Step by step: {working} The answer is {_result(operator, first, second)}.", working)
    return Exchange(user, answer, working)


def chain(rng: Random) -> Exchange:
    """Return a sum of three small numbers."""
    numbers = [rng.randint(0, 20) for _ in range(3)]
    shown = " + ".join(map(str, numbers))
    middle = numbers[0] + numbers[1]
    user = expand(rng, rng.choice(_ASKED)).format(sum=shown)
    thought = f"{numbers[0]} + {numbers[1]} = {middle}. {middle} + {numbers[2]} = {sum(numbers)}."
    return Exchange(capitalised(user), f"{shown} = {sum(numbers)}", thought)
