"""A FastStream service that talks with Millrace: it publishes what the guide
publishes, with nothing but FastStream's own headers, and subscribes to what
follows. Each message that comes is printed as a line of JSON.

    exchange.py kafka|rabbitmq ADDRESS NAME

NAME tells this run from others on the same broker.
"""

import asyncio
import json
import logging
import sys

logging.basicConfig(stream=sys.stderr, level=logging.INFO)
logger = logging.getLogger()
kind, address, name = sys.argv[1:4]
user, order = f"{name}-user", f"{name}-order"
topics = ["notifications", "user.profile.updated", "payments.requested"]
arrived = {topic: asyncio.Event() for topic in topics}

if kind == "kafka":
    from faststream.kafka import KafkaBroker

    broker = KafkaBroker(address, logger=logger)

    def subscriber(topic):
        return broker.subscriber(topic, group_id=name, auto_offset_reset="earliest")

    async def publish(topic, key, body):
        await broker.publish(body, topic=topic, key=key.encode())
else:
    from faststream.rabbit import RabbitBroker, RabbitExchange, RabbitQueue

    broker = RabbitBroker(address, logger=logger)
    exchange = RabbitExchange("millrace", declare=False)

    def subscriber(topic):
        # A queue of its own: it takes copies, not Millrace's messages.
        return broker.subscriber(RabbitQueue(f"{name}.{topic}", routing_key=topic, auto_delete=True), exchange)

    async def publish(topic, key, body):
        await broker.publish(body, queue=topic)


def listen(topic):
    @subscriber(topic)
    async def handle(body: dict) -> None:
        if body.get("user_id") == user or body.get("order_id") == order:
            print(json.dumps({"topic": topic, "body": body}), flush=True)
            arrived[topic].set()


async def main():
    for topic in topics:
        listen(topic)

    await broker.start()
    await publish("user.created", user, {"user": {"id": user, "name": "Alice", "email": "alice@example.com"}})
    await arrived["notifications"].wait()
    await publish("user.updated", user, {"user_id": user, "updates": {"city": "Berlin"}})
    await arrived["user.profile.updated"].wait()
    await publish("orders.created", order, {"order": {"id": order, "product_id": "product_1", "quantity": 2, "total_amount": 99.99}})
    await arrived["payments.requested"].wait()
    await publish("notifications", user, {"user_id": user, "content": "Hello from FastStream", "channel": "log"})
    await broker.stop()


asyncio.run(asyncio.wait_for(main(), 60))
