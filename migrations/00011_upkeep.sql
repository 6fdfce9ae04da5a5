-- +goose Up

-- What `millrace audit --repair` mended, written in the transaction that does it.
CREATE TABLE repairs (
    id          bigint      GENERATED ALWAYS AS IDENTITY,
    invariant   text        NOT NULL,
    subject     text        NOT NULL,
    what        text        NOT NULL,
    who         text        NOT NULL,
    why         text        NOT NULL,
    repaired_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT repairs_pkey PRIMARY KEY (id)
);

COMMENT ON TABLE repairs IS 'What was mended by hand of the audit, with who did it and why.';
COMMENT ON COLUMN repairs.subject IS 'What was changed: the id that the audit printed.';
COMMENT ON COLUMN repairs.what IS 'The values before and after.';

-- Tables that are only added to are visited by their growth, not by a share of
-- it: otherwise a visit comes ever more rarely and is ever longer, and the audit
-- has no visibility map to go by.
ALTER TABLE events SET (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);
ALTER TABLE payments SET (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_vacuum_scale_factor = 0.05);
-- They are analysed as others are: a table that was never analysed is read as a
-- whole by plans for many keys.
ALTER TABLE orders SET (autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE inbox_default SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 250000);
ALTER TABLE poison SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE user_keys SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE users SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE notifications SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);
ALTER TABLE user_misses SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);
-- One row a projection, changed several times a second.
ALTER TABLE projections SET (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

-- +goose Down
ALTER TABLE projections RESET (fillfactor, autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_vacuum_cost_delay);
ALTER TABLE user_misses RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor, autovacuum_vacuum_insert_threshold);
ALTER TABLE notifications RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor, autovacuum_vacuum_insert_threshold);
ALTER TABLE users RESET (autovacuum_vacuum_scale_factor);
ALTER TABLE user_keys RESET (autovacuum_vacuum_scale_factor);
ALTER TABLE poison RESET (autovacuum_vacuum_scale_factor);
ALTER TABLE inbox_default RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor, autovacuum_vacuum_insert_threshold);
ALTER TABLE orders SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE payments RESET (autovacuum_vacuum_insert_scale_factor, autovacuum_vacuum_insert_threshold,
    autovacuum_vacuum_scale_factor);
DROP TABLE repairs;
