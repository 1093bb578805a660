"""What vLLM and llama.cpp say beside the OpenAI paths: health, version, metrics, properties."""

from __future__ import annotations

from fleetproxy.testing.fakes import words
from fleetproxy.testing.fakes.call import Call, data
from fleetproxy.testing.fakes.compose import Ask, compose, finish, play, times

PLAIN = "text/plain; version=0.0.4; charset=utf-8"


async def vllm_health(call: Call) -> None:
    await call.reply.send(200, content_type="")


async def vllm_version(call: Call) -> None:
    await call.json({"version": "0.13.1"})


async def vllm_load(call: Call) -> None:
    await call.json({"server_load": call.engine.running})


async def llamacpp_health(call: Call) -> None:
    if not call.engine.resident and call.engine.waiting:
        loading = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
        return await call.json(loading, status=503)
    return await call.json({"status": "ok"})


async def llamacpp_props(call: Call) -> None:
    model = next(iter(call.machine.disk.values()))
    settings = {"n_ctx": model.context_length, "n_predict": -1, "speculative": False}
    await call.json(
        {
            "default_generation_settings": settings,
            "total_slots": call.machine.profile.slots,
            "model_path": f"/models/{model.name}.gguf",
            "chat_template": "{{ messages }}",
            "modalities": {"vision": "vision" in model.capabilities, "audio": False},
            "build_info": "b7400-1f2e3d4c",
        }
    )


async def llamacpp_slots(call: Call) -> None:
    running = call.engine.running
    await call.json([{"id": slot, "is_processing": slot < running} for slot in range(call.machine.profile.slots)])


async def llamacpp_tokenize(call: Call) -> None:
    numbers = words.draw(call.machine.seed, call.body.get("content"))
    count = words.count_tokens(str(call.body.get("content") or ""))
    await call.json({"tokens": [next(numbers) % 128_000 for _ in range(count)]})


async def llamacpp_completion(call: Call) -> None:
    """llama.cpp's own completion path: `content` pieces, `stop: true` at the end."""
    model = call.machine.find(str(call.body.get("model") or ""))
    prompt = str(call.body.get("prompt") or "")
    limit = call.body.get("n_predict")
    ask = Ask(model=model, prompt=prompt, last_user=prompt, max_tokens=limit if isinstance(limit, int) else None)
    async with call.engine.lease(model, call.keep_alive_s()) as lease:
        answer = compose(call.machine.seed, ask)
        call.count(answer.prompt_tokens, answer.output_tokens)
        took = times(call.engine, lease, answer)
        end = {
            "stop": True,
            "stop_type": "limit" if answer.finish == "length" else "eos",
            "model": model.name,
            "tokens_predicted": answer.output_tokens,
            "tokens_evaluated": answer.prompt_tokens,
            "timings": {"prompt_ms": took.prompt / 1e6, "predicted_ms": took.generate / 1e6},
        }
        if call.flag("stream", False):
            await call.reply.start(200, [("Content-Type", "text/event-stream")])
            async for step in play(call.engine, lease, answer):
                await call.reply.write(data({"content": step.text, "stop": False}))
            await call.reply.write(data({"content": "", **end}))
            return await call.reply.end()
        await finish(call.engine, lease, answer)
        return await call.json({"content": answer.text, **end})


async def metrics(call: Call) -> None:
    """Prometheus text under the names the real server uses."""
    machine, engine = call.machine, call.engine
    used = engine.used_bytes / engine.vram_bytes if engine.vram_bytes else 0.0
    if machine.profile.kind == "openai":
        model = next(iter(machine.disk.values())).name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        label, rows = (
            f'{{engine="0",model_name="{model}"}}',
            [
                ("vllm:num_requests_running", "gauge", engine.running),
                ("vllm:num_requests_waiting", "gauge", engine.waiting),
                ("vllm:kv_cache_usage_perc", "gauge", min(1.0, engine.running / max(machine.profile.slots, 1))),
                ("vllm:prompt_tokens_total", "counter", machine.totals["prompt_tokens"]),
                ("vllm:generation_tokens_total", "counter", machine.totals["output_tokens"]),
                ("vllm:request_success_total", "counter", machine.totals["requests"]),
            ],
        )
    else:
        label, rows = (
            "",
            [
                ("llamacpp:prompt_tokens_total", "counter", machine.totals["prompt_tokens"]),
                ("llamacpp:tokens_predicted_total", "counter", machine.totals["output_tokens"]),
                ("llamacpp:requests_processing", "gauge", engine.running),
                ("llamacpp:requests_deferred", "gauge", engine.waiting),
                ("llamacpp:kv_cache_usage_ratio", "gauge", round(used, 4)),
            ],
        )
    lines = []
    for name, kind, value in rows:
        lines += [f"# HELP {name} {name}", f"# TYPE {name} {kind}", f"{name}{label} {value}"]
    await call.reply.send(200, ("\n".join(lines) + "\n").encode(), content_type=PLAIN)
