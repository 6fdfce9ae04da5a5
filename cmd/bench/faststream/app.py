"""The order processing application of the FastStream guide, made durable and idempotent.

The guide keeps its state in memory, prints and acknowledges first. Here the state is in
Postgres: the effects of a message share one transaction, which does nothing if they
already exist; the resulting messages are published after the commit, and published again
after a redelivery; only then is the offset committed. The guide's injector is not a
public package, so main() wires the services.

Within these limits, FastStream runs as fast as it can: on uvloop, with prepared
statements, and with as many concurrent messages on a topic as the topic has partitions.
"""

import contextlib
import hashlib
import json
import logging
import os

import asyncpg
import uvloop
from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker

PARTITIONS = 8  # of Millrace's topics


class DatabaseService:
    def __init__(self, pool):
        self.pool = pool

    @contextlib.asynccontextmanager
    async def transaction(self):
        async with self.pool.acquire() as conn, conn.transaction():
            yield conn

    async def save_event(self, conn, event_type, data):
        await conn.execute("INSERT INTO events (event_type, data) VALUES ($1, $2)", event_type, json.dumps(data))


class OrderService:
    def __init__(self, db):
        self.db = db

    async def create_order(self, conn, order):
        """Create the order; return False if it exists."""
        created = await conn.fetchval(
            """INSERT INTO orders (id, product_id, quantity, total_amount, status)
               VALUES ($1, $2, $3, $4::float8::numeric, 'created') ON CONFLICT DO NOTHING RETURNING true""",
            order["id"], order["product_id"], order["quantity"], order["total_amount"],
        )
        if created:
            await self.db.save_event(conn, "order_created", order)
        return created

    async def lock_status(self, conn, order_id):
        return await conn.fetchval("SELECT status FROM orders WHERE id = $1 FOR UPDATE", order_id)

    async def update_order_status(self, conn, order_id, status):
        await conn.execute("UPDATE orders SET status = $2, updated_at = now() WHERE id = $1", order_id, status)
        await self.db.save_event(conn, "order_status_updated", {"id": order_id, "status": status})


class InventoryService:
    def __init__(self, db):
        self.db = db

    async def reserve_inventory(self, conn, product_id, quantity):
        remaining = await conn.fetchval(
            "UPDATE inventory SET available = available - $2 WHERE product_id = $1 AND available >= $2 RETURNING available",
            product_id, quantity,
        )
        if remaining is None:
            return False
        await self.db.save_event(
            conn, "inventory_reserved", {"product_id": product_id, "quantity": quantity, "remaining": remaining}
        )
        return True


class PaymentService:
    def __init__(self, db):
        self.db = db

    async def process_payment(self, conn, order_id, amount):
        success = amount > 0
        transaction_id = "txn_" + hashlib.sha256(order_id.encode()).hexdigest()[:16] if success else None
        await conn.execute(
            "INSERT INTO payments (order_id, amount, success, transaction_id) VALUES ($1, $2::float8::numeric, $3, $4)",
            order_id, amount, success, transaction_id,
        )
        result = {"order_id": order_id, "amount": amount, "success": success, "transaction_id": transaction_id}
        await self.db.save_event(conn, "payment_processed", result)
        return result


class OrderEventHandler:
    def __init__(self, db, orders, inventory, payments):
        self.db = db
        self.orders = orders
        self.inventory = inventory
        self.payments = payments

    async def handle_order_created(self, message):
        order = message["order"]
        async with self.db.transaction() as conn:
            if not await self.orders.create_order(conn, order):
                return await self.orders.lock_status(conn, order["id"])
            reserved = await self.inventory.reserve_inventory(conn, order["product_id"], order["quantity"])
            status = "inventory_reserved" if reserved else "inventory_unavailable"
            await self.orders.update_order_status(conn, order["id"], status)
            return status

    async def handle_payment_requested(self, message):
        order_id = message["order_id"]
        async with self.db.transaction() as conn:
            status = await self.orders.lock_status(conn, order_id)
            if status != "inventory_reserved":
                return status
            payment = await self.payments.process_payment(conn, order_id, message["amount"])
            status = "paid" if payment["success"] else "payment_failed"
            await self.orders.update_order_status(conn, order_id, status)
            return status

    async def handle_order_completed(self, message):
        order_id = message["order_id"]
        async with self.db.transaction() as conn:
            if await self.orders.lock_status(conn, order_id) == "paid":
                await self.orders.update_order_status(conn, order_id, "completed")


def subscribe(broker, handler):
    def subscriber(topic):
        return broker.subscriber(
            topic,
            group_id=f"{os.environ['KAFKA_GROUP']}.{topic}",
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.NACK_ON_ERROR,
            max_workers=PARTITIONS,
        )

    @subscriber("orders.created")
    async def order_created(message: dict):
        if await handler.handle_order_created(message) != "inventory_unavailable":
            order = message["order"]
            request = {"order_id": order["id"], "amount": order["total_amount"]}
            await broker.publish(request, topic="payments.requested", key=order["id"].encode())

    @subscriber("payments.requested")
    async def payment_requested(message: dict):
        if await handler.handle_payment_requested(message) != "payment_failed":
            await broker.publish(
                {"order_id": message["order_id"]}, topic="orders.completed", key=message["order_id"].encode()
            )

    @subscriber("orders.completed")
    async def order_completed(message: dict):
        await handler.handle_order_completed(message)


async def main():
    pool = await asyncpg.create_pool(
        os.environ["DATABASE_URL"], min_size=3 * PARTITIONS, max_size=3 * PARTITIONS, server_settings={"search_path": "guide"}
    )
    db = DatabaseService(pool)
    handler = OrderEventHandler(db, OrderService(db), InventoryService(db), PaymentService(db))
    broker = KafkaBroker(os.environ["KAFKA_BROKERS"].split(","), acks="all", enable_idempotence=True, logger=None)
    subscribe(broker, handler)
    app = FastStream(broker, logger=None)

    @app.after_startup
    async def ready():
        print("ready", flush=True)

    await app.run()
    await pool.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    uvloop.run(main())
