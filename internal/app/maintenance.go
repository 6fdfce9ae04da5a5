package app

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/upkeep"
)

// upkeep is all that maintenance does, in this order. Whatever else grows gets
// a line here.
func (s *Service) upkeep() []upkeep.Task {
	return []upkeep.Task{
		{Name: "partitions ahead", Do: func(ctx context.Context) (int64, error) { return 0, s.ensurePartitions(ctx) }},
		{Name: "inbox partitions", Do: func(ctx context.Context) (int64, error) {
			return inbox.DropPartitions(ctx, s.Pool, time.Now().Add(-s.Inbox.Retention))
		}},
		{Name: "inbox rows without a day", Do: func(ctx context.Context) (int64, error) {
			return inbox.DeleteUndated(ctx, s.Pool, time.Now().Add(-s.Inbox.Retention))
		}},
		{Name: "analytics events", Do: func(ctx context.Context) (int64, error) { return s.Analytics.Clean(ctx, time.Now()) }},
		{Name: "resolved messages", Do: s.Failed.Expire},
		s.rows("updates of unknown users", "user_misses", "missed_at", s.Retention.UserMissesRetention),
		s.rows("notifications", "notifications", "sent_at", s.Retention.NotificationsRetention),
	}
}

// rows is the task to delete the rows of a table that are older than their
// retention; 0 is for ever.
func (s *Service) rows(name, table, column string, retention time.Duration) upkeep.Task {
	return upkeep.Task{Name: name, Do: func(ctx context.Context) (int64, error) {
		if retention == 0 {
			return 0, nil
		}

		return postgres.DeleteBefore(ctx, s.Pool, table, column, time.Now().Add(-retention))
	}}
}

// ensurePartitions makes the partitions of the days to come.
func (s *Service) ensurePartitions(ctx context.Context) error {
	now := time.Now()

	return errors.Join(inbox.EnsurePartitions(ctx, s.Pool, now), s.Analytics.EnsurePartitions(ctx, now))
}

// beginPartitions makes the partitions at the start. If somebody holds the
// table, rows go to the default partition until maintenance has made them.
func (s *Service) beginPartitions(ctx context.Context) error {
	err := s.ensurePartitions(ctx)
	if err != nil && ctx.Err() == nil && postgres.IsUnavailable(err) {
		s.logger.Warn("could not make partitions, trying again later", slog.Any("error", err))

		return nil
	}

	return err
}
