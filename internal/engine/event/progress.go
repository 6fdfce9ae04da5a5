package event

import "context"

// Stalled returns why messages on some of the topics are not being processed, or "" if
// they are: a consumer is paused or waits for a dependency, or their broker is
// unavailable. It is for work that must pause while topics are stalled, such as
// deadlines.
type Stalled func(topics ...string) string

// Undelivered returns which of keys have a message on topic that has not been applied:
// it is in the outbox, or is waiting or stopped as a failed message. It does not
// see messages inside another broker. If the answer for a key is unknown, the key counts
// as having a message.
type Undelivered func(ctx context.Context, topic string, keys []string) ([]string, error)
