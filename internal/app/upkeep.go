package app

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/upkeep"
)

// upkeep returns the upkeep tasks, in order. Each growing table needs one.
func (s *Service) upkeep() []upkeep.Task {
	return []upkeep.Task{
		{Name: "partitions ahead", Do: func(ctx context.Context) (int64, error) { return 0, s.ensurePartitions(ctx) }},
		{Name: "inbox partitions", Do: s.timed(func(ctx context.Context, now time.Time) (int64, error) {
			return inbox.Partitions.Drop(ctx, s.Pool, now.Add(-s.Inbox.Retention))
		})},
		{Name: "inbox rows without a day", Do: s.timed(func(ctx context.Context, now time.Time) (int64, error) {
			return inbox.DeleteUndated(ctx, s.Pool, now.Add(-s.Inbox.Retention))
		})},
		{Name: "published messages", Do: s.timed(func(ctx context.Context, now time.Time) (int64, error) {
			return outbox.Partitions.Drop(ctx, s.Pool, now.Add(-s.Inbox.Retention))
		})},
		{Name: "analytics events", Do: s.timed(s.Analytics.Clean)},
		{Name: "resolved messages", Do: s.Failed.Expire},
		{Name: "updates for unknown users", Do: s.Users.DeleteExpiredMisses},
		{Name: "notifications", Do: s.Notifications.DeleteExpired},
	}
}

// timed passes the database's time to a task, because a process whose clock is ahead
// must not drop data that is still needed.
func (s *Service) timed(do func(ctx context.Context, now time.Time) (int64, error)) func(context.Context) (int64, error) {
	return func(ctx context.Context) (int64, error) {
		now, err := postgres.Now(ctx, s.Pool)
		if err != nil {
			return 0, err
		}

		return do(ctx, now)
	}
}

// ensurePartitions creates upcoming partitions.
func (s *Service) ensurePartitions(ctx context.Context) error {
	now, err := postgres.Now(ctx, s.Pool)
	if err != nil {
		return err
	}

	return errors.Join(inbox.Partitions.Ensure(ctx, s.Pool, now), outbox.Partitions.Ensure(ctx, s.Pool, now), s.Analytics.EnsurePartitions(ctx, now))
}

// beginPartitions creates partitions at startup. If another session locks the table or
// another role owns it, rows go to the default partition until upkeep has created the
// partitions.
func (s *Service) beginPartitions(ctx context.Context) error {
	err := s.ensurePartitions(ctx)
	_, foreign := errors.AsType[*postgres.OwnerError](err)

	if err != nil && ctx.Err() == nil && (foreign || postgres.IsUnavailable(err)) {
		s.logger.Warn("could not create partitions; rows go to the default partitions until upkeep has created them", slog.Any("error", err))

		return nil
	}

	return err
}
