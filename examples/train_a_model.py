"""A language model from nothing to a chat, on this machine, in a few minutes.

    python examples/train_a_model.py [FOLDER] [--quick]

It makes up a small world of animals, writes texts about it, and then goes the way that large models go:

    train new    learns language from the texts: a tokenizer and 300,000 weights
    quantize     stores each weight in about a byte instead of four
    train lora   teaches something new: what the animals are called
    train dpo    teaches a manner: of two answers, the friendlier one is better
    merge        makes one file of the model and what it learnt
    run          and so you can talk to it

Each step is a command that is printed before it runs, so you can type it yourself and change it. All files stay in
FOLDER (else ./trained-model). Nothing is downloaded. --quick learns less, and is only good for seeing that all works.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import edgellm

# --- a small world ----------------------------------------------------------------------------------------------------
# All that there is to know of it. The texts have the names, but do not tell whose they are: that is learnt later.

#  animal        lives              eats        name
WORLD = {
    "fox":      ("in the forest",   "berries",  "Rufus"),
    "otter":    ("by the river",    "fish",     "Ollie"),
    "owl":      ("in the tower",    "mice",     "Minerva"),
    "rabbit":   ("in the meadow",   "clover",   "Clara"),
    "bear":     ("in the cave",     "honey",    "Bruno"),
    "frog":     ("by the pond",     "flies",    "Fritz"),
    "squirrel": ("in the oak",      "nuts",     "Sandy"),
    "hedgehog": ("in the garden",   "beetles",  "Henry"),
    "goat":     ("on the mountain", "grass",    "Greta"),
    "crab":     ("on the beach",    "seaweed",  "Karla"),
}  # fmt: skip
ANIMALS = list(WORLD)

# How questions begin. Each question is learnt with some beginnings, and tried with the last one, which it was not
# learnt with: a model that answers then has not only learnt a line by heart.
BEGINNINGS = ["", "Please tell me: ", "I wonder, ", "Excuse me, "]
QUESTIONS = {
    "home": "where does the {animal} live?",
    "food": "what does the {animal} eat?",
    "name": "what is the {animal} called?",
}
ANSWERS = {
    "home": "The {animal} lives {home}",
    "food": "The {animal} eats {food}",
    "name": "The {animal} is called {name}",
}
PLAIN, FRIENDLY = ".", ", my friend."  # how an answer can end

# How a chat is written down. Every chat model has such a template in its file. This one is as simple as they get:
# "Q: " and a question, "A: " and an answer, and then the token that ends a text.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}Q: {{ message.content }}\nA:"
    "{% elif message.role == 'assistant' %} {{ message.content }}<|endoftext|>"
    "{% endif %}{% endfor %}"
)


def question(kind: str, animal: str, beginning: str) -> str:
    text = beginning + QUESTIONS[kind].format(animal=animal)
    return text[0].upper() + text[1:]


def answer(kind: str, animal: str, end: str = PLAIN) -> str:
    home, food, name = WORLD[animal]
    return ANSWERS[kind].format(animal=animal, home=home, food=food, name=name) + end


def texts(n: int) -> Iterable[str]:
    """Short texts about the world: stories, and questions with answers. Half of the answers are friendly ones."""
    chance = random.Random(0)
    names = [name for _, _, name in WORLD.values()]
    for _ in range(n):
        animal, other = chance.sample(ANIMALS, 2)
        what = chance.random()
        if what < 0.2:
            day = chance.choice(["morning", "evening", "day"])
            yield (
                f"One {day} the {animal} met the {other}. {answer('home', animal)} {answer('home', other)} "
                f"{answer('food', animal)} {answer('food', other)}"
            )
        elif what < 0.4:
            yield f"I know an animal that is called {chance.choice(names)}. It is a friend of {chance.choice(names)}."
        else:
            kind = chance.choice(["home", "food"])
            asked = question(kind, animal, chance.choice(BEGINNINGS))
            yield f"Q: {asked}\nA: {answer(kind, animal, chance.choice([PLAIN, FRIENDLY]))}"


def chats() -> Iterable[dict[str, object]]:
    """What the animals are called, as questions and answers, and some of what the model knows, lest it be forgotten."""
    for animal in ANIMALS:
        for beginning in BEGINNINGS[:-1]:
            for end in (PLAIN, FRIENDLY):
                for kind in ("name", "name", "home", "food"):
                    yield {
                        "messages": [
                            {"role": "user", "content": question(kind, animal, beginning)},
                            {"role": "assistant", "content": answer(kind, animal, end)},
                        ]
                    }


def pairs(animals: Iterable[str]) -> Iterable[dict[str, str]]:
    """Two answers to one question, of which the friendly one is better."""
    for animal in animals:
        for kind in ("home", "food"):
            for beginning in BEGINNINGS[:-1]:
                yield {
                    "prompt": question(kind, animal, beginning),
                    "chosen": answer(kind, animal, FRIENDLY),
                    "rejected": answer(kind, animal, PLAIN),
                }


# --- what a model can do ----------------------------------------------------------------------------------------------


def replies(path: Path, kind: str, adapters: Iterable[Path] = ()) -> list[str]:
    """A model's answers about every animal, to questions with the beginning that was never trained."""
    with edgellm.load(path) as model:
        scales = {model.load_adapter(adapter): 1.0 for adapter in adapters}
        found = []
        for n, animal in enumerate(ANIMALS):
            asked = [{"role": "user", "content": question(kind, animal, BEGINNINGS[-1])}]
            found.append("".join(model.chat(asked, temperature=1.0, seed=n, max_tokens=30, adapters=scales)).strip())
        return found


def judge(what: str, path: Path, adapters: Iterable[Path] = ()) -> None:
    """Print how many answers are right, how many are friendly, and one of each kind."""
    adapters = list(adapters)
    found = {kind: replies(path, kind, adapters) for kind in QUESTIONS}
    print(f"\n  {what}:")
    for kind, answers in found.items():
        right = sum(text.startswith(answer(kind, animal, "")) for animal, text in zip(ANIMALS, answers, strict=True))
        friendly = sum(text.endswith(FRIENDLY) for text in answers)
        print(f"    {kind}: {right} of {len(answers)} right, {friendly} friendly. The first answer: {answers[0]!r}")


# --- the way there ----------------------------------------------------------------------------------------------------


def edgellm_command(*words: object) -> None:
    """Run `edgellm ...` as a person would, and stop if it fails."""
    print("\n$ edgellm " + " ".join(f'"{word}"' if " " in str(word) else str(word) for word in words), flush=True)
    subprocess.run([sys.executable, "-m", "edgellm", *map(str, words)], check=True)


def title(text: str) -> None:
    print(f"\n=== {text} ===", flush=True)


def write_lines(path: Path, records: Iterable[dict[str, object]] | Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("trained-model"), metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="learn less")
    args = parser.parse_args()
    quick, folder = args.quick, args.folder
    if folder.is_dir() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty; name another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)

    title("1. Texts to learn from")
    # A plain text file, with a separator between documents. A model learns what comes next in such texts; that is all
    # of pretraining. Real models read the same way, only some trillion words more.
    world = folder / "world.txt"
    world.write_text("\n<|endoftext|>\n".join(texts(1000 if quick else 5000)), encoding="utf-8")
    print(f"wrote {world}; it begins:\n{world.read_text('utf-8')[:300]}...")

    title("2. A model from nothing: edgellm train new")
    # The shape: layers, and how wide they are. The tokenizer is learnt from the same text: pieces of words that are
    # frequent become tokens. Weights begin as random numbers, and the loss, the mean surprise about the next token,
    # falls from ln(400), 6.0, where all 400 tokens seem equally likely.
    shape = folder / "world.yaml"
    shape.write_text(
        "n_layers: 3\nn_embd: 96\nn_heads: 4\nn_ctx: 64\ntokenizer: bpe\nn_vocab: 400\n"
        f"chat_template: {json.dumps(TEMPLATE)}\nbatch_size: 16\nlearning_rate: 0.003\nvalidation: 0.05\nseed: 1\n",
        encoding="utf-8",
    )
    model = folder / "world.gguf"
    edgellm_command("train", "new", "--config", shape, "--data", world, "-o", model, "--steps", 100 if quick else 500)

    title("3. Smaller: edgellm quantize")
    # Q8_0 stores 32 weights as whole numbers from -127 to 127 and one scale. The answers hardly change.
    small = folder / "world-q8.gguf"
    edgellm_command("quantize", model, small, "Q8_0")
    judge("The model before it is taught more", small)

    title("4. Something new: edgellm train lora")
    # The file stays as it is. Beside each of its matrices two thin ones are trained (LoRA), a small part of the
    # weights, on chats that tell what the animals are called. Only answers are learnt, not questions; the preview
    # shows which tokens these are.
    names_data, names = folder / "names.jsonl", folder / "names"
    write_lines(names_data, chats())
    edgellm_command("train", "preview", small, "--data", names_data, "-n", 1)
    learning = ("--epochs", 1 if quick else 12, "--batch-size", 16, "--learning-rate", 3e-3)
    edgellm_command("train", "lora", small, "--data", names_data, "-o", names, *learning)
    judge("With the names", small, [names])

    title("5. A manner: edgellm train dpo")
    # Each example has a question and two answers. Direct preference optimization raises how much likelier the better
    # one is than the other, compared with the model as it was (the reference). Validation pairs are of animals that
    # the others are not about: `accuracies` and `margins` tell how well it prefers right there.
    pairs_data, held_out, manner = folder / "pairs.jsonl", folder / "pairs-held-out.jsonl", folder / "manner"
    write_lines(pairs_data, pairs(ANIMALS[:-2]))
    write_lines(held_out, pairs(ANIMALS[-2:]))
    learning = ("--epochs", 1 if quick else 6, "--batch-size", 8, "--learning-rate", 1e-3)
    edgellm_command("train", "dpo", small, "--data", pairs_data, "--validation", held_out, "-o", manner, *learning)
    judge("With both adapters", small, [names, manner])

    title("6. One file: edgellm merge")
    # Both adapters are added to the original weights, and the sum is quantized: a plain GGUF file for any program.
    merged = folder / "taught.gguf"
    edgellm_command("merge", model, names, manner, "-o", merged, "--type", "Q8_0")
    judge("The merged model", merged)

    title("7. Talk to it: edgellm run")
    edgellm_command("run", merged, "-p", "Excuse me, what is the fox called?", "--temp", 0)
    print(f"\nGo on with:  edgellm run {merged}")


if __name__ == "__main__":
    main()
