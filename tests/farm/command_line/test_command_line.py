"""`mlx-farm` and its client commands: what they ask, what they print, how they end."""

from __future__ import annotations

import json
import os
import pty
from typing import Any

import pytest

from farm.client import ServerEvent, parse_events
from farm.flags import environment

CHAT = [
    ": queued position=1\n\n",
    'id: 1-1\ndata: {"choices": [{"delta": {"role": "assistant", "content": "Hel"}}]}\n\n',
    'id: 1-2\ndata: {"choices": [{"delta": {"content": "lo ✓"}}]}\n\n',
    "data: [DONE]\n\n",
]


def test_flags_become_settings_and_those_not_given_stay_out() -> None:
    given = environment({"max_sequences": 8, "host": None, "insecure": False})
    assert given == {"FARM_MAX_SEQUENCES": "8", "FARM_INSECURE": "False"}
    assert environment({"adapters": ["a=/1", "b=/2"]}) == {"FARM_ADAPTERS": "a=/1,b=/2"}
    assert environment({"adapters": ()}) == environment({"adapters": []}) == {}


def test_an_event_without_its_blank_line_is_dropped_and_data_lines_are_joined() -> None:
    lines = [b"id: 1-1\n", b"data: a\n", b"data: b\r\n", b"\n", b": waits\n", b"\n", b"data: torn"]
    assert list(parse_events(iter(lines))) == [ServerEvent("a\nb", "1-1"), ServerEvent(comment="waits")]


def test_help_names_every_command(mlx_farm: Any) -> None:
    done = mlx_farm("--help")
    assert done.returncode == 0
    commands = "serve api worker scheduler run ls ps jobs batch audit db doctor config version"
    assert all(f"{name} " in done.stdout for name in commands.split())


def test_no_farm_at_the_address_is_one_line_and_exit_code_3(mlx_farm: Any) -> None:
    mlx_farm.environment["FARM_URL"] = "http://127.0.0.1:9"
    for arguments in (["ls"], ["ps"], ["jobs", "ls"], ["jobs", "tail", "x"], ["run", "demo", "hi"]):
        done = mlx_farm(*arguments)
        assert done.returncode == 3
        assert "mlx-farm serve" in done.stderr
        assert done.stderr.count("\n") == 1


def test_wrong_usage_is_exit_code_2(mlx_farm: Any) -> None:
    assert mlx_farm("serve", "--no-such-flag").returncode == 2
    mlx_farm.environment["FARM_URL"] = "ftp://x"
    assert mlx_farm("ls").returncode == 2


def test_an_error_of_the_api_is_its_message_and_exit_code_1(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    stub_api.answer = lambda request: stub_api.reply({"error": {"message": "No job 'x' is known here"}}, 404)
    done = mlx_farm("jobs", "get", "x")
    assert done.returncode == 1
    assert done.stderr == "mlx-farm: No job 'x' is known here (HTTP 404)\n"


def test_listings_print_lines_for_a_pipe_and_json_on_request(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment |= {"FARM_URL": f"{stub_api.url}/v1", "FARM_API_KEY": "secret"}
    demo = {"id": "demo", "parent": None, "owned_by": "mlx-farm", "max_model_len": 1024}
    models = {"object": "list", "data": [demo, demo | {"id": "poems", "parent": "demo"}]}
    stub_api.answer = lambda request: stub_api.reply(models)
    assert mlx_farm("ls").stdout == (
        "MODEL\tADAPTER OF\tOWNER\tCONTEXT\ndemo\t\tmlx-farm\t1024\npoems\tdemo\tmlx-farm\t1024\n"
    )
    assert json.loads(mlx_farm("ls", "--json").stdout) == models
    assert stub_api.paths() == ["GET /v1/models"] * 2
    assert stub_api.requests[0].headers["authorization"] == "Bearer secret"


def test_job_filters_become_the_query(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    jobs = {"data": [{"id": "j1", "state": "running", "model": "demo", "lane": "low", "created_at": 0}]}
    stub_api.answer = lambda request: stub_api.reply(jobs)
    done = mlx_farm("jobs", "ls", "--state", "running", "--limit", "5")
    assert done.stdout.splitlines()[1].startswith("j1\trunning\tdemo\tlow\t")
    assert stub_api.paths() == ["GET /v1/jobs?limit=5&state=running"]


def test_run_streams_the_answer_with_piped_text_behind_the_prompt(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    stub_api.answer = lambda request: stub_api.reply("".join(CHAT), content_type="text/event-stream")
    done = mlx_farm("run", "demo", "Say", "hello", "--temperature", "0", "--system", "Be kind", text="to this file\n")
    assert (done.returncode, done.stdout) == (0, "Hello ✓\n")
    body = stub_api.requests[0].body
    assert (body["model"], body["stream"], body["temperature"]) == ("demo", True, 0)
    assert [m["content"] for m in body["messages"]] == ["Be kind", "Say hello\n\nto this file"]


def test_run_without_any_prompt_says_so(mlx_farm: Any) -> None:
    assert mlx_farm("run", "demo").returncode == 2


def test_an_error_inside_the_stream_ends_run_with_its_message(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    stub_api.answer = lambda request: stub_api.reply(CHAT[1] + 'data: {"error": {"message": "the worker is gone"}}\n\n')
    done = mlx_farm("run", "demo", "hi")
    assert done.returncode == 1
    assert done.stderr == "mlx-farm: the worker is gone\n"


def test_tail_continues_after_the_last_event_when_the_connection_breaks(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url

    def answer(request: Any) -> Any:
        if "last-event-id" not in request.headers:
            return stub_api.reply("".join(CHAT[:2]), cut=True)
        assert request.headers["last-event-id"] == "1-1"
        return stub_api.reply("".join(CHAT[2:]))

    stub_api.answer = answer
    done = mlx_farm("jobs", "tail", "j1")
    assert (done.returncode, done.stdout) == (0, "Hello ✓\n")
    assert "Trying again" in done.stderr
    assert stub_api.paths() == ["GET /v1/jobs/j1/events"] * 2


def test_tail_goes_elsewhere_when_the_node_stops_and_ends_with_the_jobs_own_error(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    draining = 'data: {"error": {"message": "This server node is shutting down"}}\n\n'
    failed = 'id: 1-2\ndata: {"error": {"message": "the grammar was refused"}}\n\n'
    replies = [CHAT[1] + draining, failed]
    stub_api.answer = lambda request: stub_api.reply(replies.pop(0))
    done = mlx_farm("jobs", "tail", "j1")
    assert (done.returncode, done.stdout) == (1, "Hel")
    assert done.stderr.endswith("mlx-farm: the grammar was refused\n")


def test_a_conversation_keeps_its_messages_until_clear(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment |= {"FARM_URL": stub_api.url, "TERM": "dumb"}
    stub_api.answer = lambda request: stub_api.reply("".join(CHAT))
    typed = 'one\n"""two\nlines"""\n/clear\nthree\n/bye\n'
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(mlx_farm.command()[0], mlx_farm.command("run", "demo"), mlx_farm.environment)
    os.write(terminal, typed.encode())
    shown = _read_all(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    sent = [[message["content"] for message in request.body["messages"]] for request in stub_api.requests]
    assert sent == [["one"], ["one", "Hello ✓", "two\nlines"], ["three"]]


def test_config_show_names_each_origin_and_masks_secrets(mlx_farm: Any) -> None:
    home = mlx_farm.folder / "home"
    home.mkdir()
    (home / "config.toml").write_text("port = 8100\nshards = 2\n")
    (mlx_farm.folder / "farm.toml").write_text('port = 8200\nmodle = "typo"\n')
    mlx_farm.environment |= {
        "FARM_API_KEY": "very-secret",
        "FARM_DATABASE_URL": "postgresql+asyncpg://me:very-secret@db/farm",
        "FARM_REDIS_URL": "redis+sentinel://me:very-secret@a,b/farm?sentinel_password=very-secret",
    }
    done = mlx_farm("config", "show", "--json")
    shown = json.loads(done.stdout)
    assert shown["port"] == {"value": "8200", "origin": "farm.toml"}
    assert shown["shards"] == {"value": "2", "origin": str(home / "config.toml")}
    assert shown["lease_s"]["origin"] == "default"
    assert "FARM_API_KEY" in shown["api_key"]["origin"]
    assert "very-secret" not in done.stdout
    assert "modle in farm.toml" in done.stderr


def test_a_wrong_setting_is_named_with_its_value_and_origin(mlx_farm: Any) -> None:
    mlx_farm.environment["FARM_PORT"] = "eight"
    done = mlx_farm("serve")
    assert done.returncode == 2
    assert "FARM_PORT" in done.stderr
    assert "'eight'" in done.stderr


@pytest.mark.parametrize(
    ("insecure", "verdict", "said"), [("false", "OK", "first start"), ("true", "WARN", "INSECURE")]
)
def test_doctor_says_who_can_use_a_public_address(mlx_farm: Any, insecure: str, verdict: str, said: str) -> None:
    mlx_farm.environment |= {"FARM_REDIS_URL": "redis://127.0.0.1:9/0", "FARM_INSECURE": insecure}
    done = mlx_farm("doctor", "--json", "--host", "0.0.0.0", "--port", "0")
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert findings["key"]["verdict"] == verdict
    assert said in findings["key"]["found"]
    assert findings["queue"]["verdict"] == "FAIL"
    assert findings["python"]["verdict"] == "OK"


def _read_all(terminal: int) -> str:
    shown = b""
    try:
        while data := os.read(terminal, 4096):
            shown += data
    except OSError:  # Linux says EIO at the end of a terminal
        pass
    os.close(terminal)
    return shown.decode(errors="replace")
