-- +goose Up

CREATE TABLE notifications (
    message_id uuid        NOT NULL,
    user_id    text        NOT NULL,
    channel    text        NOT NULL,
    status     text        NOT NULL,
    answer     text        NOT NULL,
    sent_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT notifications_pkey PRIMARY KEY (message_id),
    CONSTRAINT notifications_channel_known CHECK (channel IN ('email', 'webhook', 'log')),
    CONSTRAINT notifications_status_known CHECK (status IN ('sent', 'skipped'))
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

COMMENT ON TABLE notifications IS 'Sent notifications, with the provider''s response. Their content is not stored.';
CREATE INDEX notifications_user ON notifications (user_id, sent_at);
CREATE INDEX notifications_sent_at ON notifications (sent_at);

-- +goose Down
DROP TABLE notifications;
