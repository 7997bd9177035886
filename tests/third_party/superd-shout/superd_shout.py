from superd.plugin import Connection, Service, hookimpl


class Shout(Service):
    """Answers every line in capitals."""

    name = "shout"

    async def stream(self, conn: Connection) -> None:
        async for line in conn:
            await conn.send(line.upper())


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Shout]
