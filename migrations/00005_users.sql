-- +goose Up

-- One data key per user. Destroying the key makes the personal data in the user's stream
-- unreadable. The row is also the aggregate's lock.
CREATE TABLE user_keys (
    user_id   text        NOT NULL,
    key       bytea,
    erased_at timestamptz,
    CONSTRAINT user_keys_pkey PRIMARY KEY (user_id),
    CONSTRAINT user_keys_length CHECK (length(key) = 32),
    CONSTRAINT user_keys_erased CHECK ((key IS NULL) = (erased_at IS NOT NULL))
) WITH (autovacuum_vacuum_scale_factor = 0.05);

COMMENT ON TABLE user_keys IS 'AES-256 keys for the personal data in streams user-<id>; NULL once the user is erased.';

-- The projection of the streams user-<id>. A rebuild recreates it from this
-- definition, so constraints and indexes have their default names.
CREATE TABLE users (
    id         text        NOT NULL PRIMARY KEY,
    version    integer     NOT NULL,
    name       text,
    email      text,
    properties jsonb       NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    erased     boolean     NOT NULL DEFAULT false,
    CONSTRAINT users_erased_is_empty CHECK (NOT erased OR (name IS NULL AND email IS NULL AND properties = '{}'))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);

COMMENT ON TABLE users IS 'The users, projected from the event store with a short delay.';

CREATE TABLE user_misses (
    message_id uuid        NOT NULL,
    user_id    text        NOT NULL,
    missed_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT user_misses_pkey PRIMARY KEY (message_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

COMMENT ON TABLE user_misses IS 'Updates of users that do not exist: the outcome user_not_found.';
CREATE INDEX user_misses_missed_at ON user_misses (missed_at);

-- +goose Down
DROP TABLE user_misses;
DROP TABLE users;
DROP TABLE user_keys;
