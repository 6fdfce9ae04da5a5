-- +goose Up

-- Responses of the HTTP API by the Idempotency-Key of their request.
CREATE TABLE idempotency_keys (
    key         text        NOT NULL,
    fingerprint bytea       NOT NULL,
    status      integer     NOT NULL,
    headers     jsonb       NOT NULL,
    body        bytea       NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (key)
);

COMMENT ON TABLE idempotency_keys IS 'Responses that are repeated when a request is repeated; kept for a day.';
COMMENT ON COLUMN idempotency_keys.fingerprint IS 'SHA-256 of method, address and body: the same key with another request is refused.';

-- +goose Down
DROP TABLE idempotency_keys;
