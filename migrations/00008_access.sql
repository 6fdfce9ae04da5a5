-- +goose Up

-- Tokens for the operator API. A row is kept after its token is revoked, because actions
-- are recorded under its name.
CREATE TABLE api_tokens (
    name       text        NOT NULL,
    role       text        NOT NULL,
    digest     bytea       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text        NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at    timestamptz,
    revoked_at timestamptz,
    revoked_by text,
    CONSTRAINT api_tokens_pkey PRIMARY KEY (name),
    CONSTRAINT api_tokens_digest UNIQUE (digest),
    CONSTRAINT api_tokens_sha256 CHECK (octet_length(digest) = 32),
    CONSTRAINT api_tokens_role CHECK (role IN ('viewer', 'operator', 'admin')),
    CONSTRAINT api_tokens_revoked CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);

COMMENT ON TABLE api_tokens IS 'Tokens for the operator API: who may do what, and until when.';
COMMENT ON COLUMN api_tokens.digest IS 'SHA-256 of the token, which has 256 random bits and is stored nowhere.';
COMMENT ON COLUMN api_tokens.used_at IS 'When the token was last accepted, to the minute.';

-- +goose Down
DROP TABLE api_tokens;
