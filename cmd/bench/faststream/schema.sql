-- The tables of app.py, alongside Millrace's own.
CREATE SCHEMA guide;

CREATE TABLE guide.orders (
    id           text PRIMARY KEY,
    product_id   text          NOT NULL,
    quantity     bigint        NOT NULL,
    total_amount numeric(24,6) NOT NULL,
    status       text          NOT NULL,
    created_at   timestamptz   NOT NULL DEFAULT now(),
    updated_at   timestamptz   NOT NULL DEFAULT now()
);

CREATE TABLE guide.inventory (
    product_id text PRIMARY KEY,
    available  bigint NOT NULL CHECK (available >= 0)
);

CREATE TABLE guide.payments (
    order_id       text PRIMARY KEY,
    amount         numeric(24,6) NOT NULL,
    success        boolean       NOT NULL,
    transaction_id text
);

-- The data that the guide's DatabaseService.save_event saves.
CREATE TABLE guide.events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_type  text        NOT NULL,
    data        jsonb       NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
