-- +goose Up

-- The simulated gateway's own record. It is written apart from the transactions
-- of the service, as a provider's record is, and nothing refers to it.
CREATE TABLE gateway_ledger (
    idempotency_key text          NOT NULL,
    order_id        text          NOT NULL,
    attempt         integer       NOT NULL,
    amount          numeric(24,6) NOT NULL,
    currency        text          NOT NULL,
    requests        integer       NOT NULL DEFAULT 1,
    transaction_id  text,
    decline_reason  text,
    settled_at      timestamptz,
    refund_requests integer       NOT NULL DEFAULT 0,
    refund_id       text,
    refunded        numeric(24,6) NOT NULL DEFAULT 0,
    refunded_at     timestamptz,
    CONSTRAINT gateway_ledger_pkey PRIMARY KEY (idempotency_key),
    CONSTRAINT gateway_ledger_one_outcome CHECK (num_nonnulls(transaction_id, decline_reason) = num_nonnulls(settled_at)),
    CONSTRAINT gateway_ledger_refund_of_capture CHECK (refund_id IS NULL OR transaction_id IS NOT NULL),
    CONSTRAINT gateway_ledger_refunded_within CHECK (refunded BETWEEN 0 AND amount)
);

COMMENT ON TABLE gateway_ledger IS 'What the simulated payment gateway was asked for and did.';
COMMENT ON COLUMN gateway_ledger.requests IS 'How often the charge was asked for; it is captured once.';
COMMENT ON COLUMN gateway_ledger.settled_at IS 'When it was captured or declined. NULL: asked for, and nothing done.';

-- Not unique, as little as stripe_intents_intent: of two requests at once with
-- the same key one would fail on this index before ON CONFLICT sees the other.
CREATE INDEX gateway_ledger_transaction ON gateway_ledger (transaction_id) WHERE transaction_id IS NOT NULL;
CREATE INDEX gateway_ledger_captured ON gateway_ledger (settled_at, idempotency_key) WHERE transaction_id IS NOT NULL;
CREATE INDEX gateway_ledger_order ON gateway_ledger (order_id);

-- Which PaymentIntent stands for which charge: written before money can move.
CREATE TABLE stripe_intents (
    idempotency_key text        NOT NULL,
    order_id        text        NOT NULL,
    attempt         integer     NOT NULL,
    intent_id       text        NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT stripe_intents_pkey PRIMARY KEY (idempotency_key)
);

COMMENT ON TABLE stripe_intents IS 'The only PaymentIntent of Stripe that may be confirmed for a charge. Stripe forgets idempotency keys after a day; this does not.';

CREATE INDEX stripe_intents_intent ON stripe_intents (intent_id);
CREATE INDEX stripe_intents_order ON stripe_intents (order_id);

-- What providers told by webhook: they repeat themselves.
CREATE TABLE provider_events (
    provider    text        NOT NULL,
    event_id    text        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT provider_events_pkey PRIMARY KEY (provider, event_id)
);

COMMENT ON TABLE provider_events IS 'Webhooks that became messages. Kept for 30 days, longer than any provider repeats one.';

CREATE INDEX provider_events_received_at ON provider_events (received_at);

-- +goose Down
DROP TABLE provider_events;
DROP TABLE stripe_intents;
DROP TABLE gateway_ledger;
