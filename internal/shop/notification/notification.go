// Package notification notifies users by e-mail, by webhook or in the log. A
// notification is sent at least once, with an id that depends on its message
// alone, so that a receiver recognises a duplicate.
package notification

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Topic carries requests for notifications.
const Topic = "notifications"

// Channel is a way to reach a user.
type Channel string

// Channels.
const (
	Email   Channel = "email"
	Webhook Channel = "webhook"
	Log     Channel = "log"
)

// MailServer is the dependency that e-mails need; see event.Unavailable.
const MailServer = "mail server"

// maxContent is the maximum length of a content in bytes.
const maxContent = 100 << 10

// Requested is a request for a notification.
type Requested struct {
	UserID  string `json:"user_id"`
	Content string `json:"content"`
	// Channel defaults to e-mail.
	Channel Channel `json:"channel,omitempty"`

	// address is the recipient of an e-mail, which Admit looks up.
	address string
}

// Topic implements event.Payload.
func (Requested) Topic() string { return Topic }

// Key implements event.Payload.
func (r Requested) Key() string { return r.UserID }

// Subject implements event.Personal.
func (r Requested) Subject() string { return r.UserID }

// Validate implements event.Payload.
func (r Requested) Validate() error {
	errs := []error{event.CheckID("user_id", r.UserID)}

	switch {
	case r.Content == "":
		errs = append(errs, errors.New("content: is missing, expected text"))
	case len(r.Content) > maxContent:
		errs = append(errs, fmt.Errorf("content: has %d bytes, expected at most %d", len(r.Content), maxContent))
	}

	switch r.channel() {
	case Email, Webhook, Log:
	default:
		errs = append(errs, fmt.Errorf("channel: is %.500q, expected %s, %s or %s", r.Channel, Email, Webhook, Log))
	}

	return errors.Join(errs...)
}

func (r Requested) channel() Channel { return cmp.Or(r.Channel, Email) }

// Directory returns the e-mail addresses of users by id. The address of an
// erased user is empty; a user who does not exist is missing.
type Directory func(ctx context.Context, db postgres.Querier, ids []string) (map[string]string, error)

// Service sends notifications.
type Service struct {
	retention time.Duration
	pool      *pgxpool.Pool
	directory Directory
	mailer    *mailer  // nil if no mail server is configured
	webhook   *webhook // nil if no URL is configured
	logger    *slog.Logger
}

// NewService returns a service. It does not connect yet.
func NewService(cfg Config, pool *pgxpool.Pool, directory Directory, logger *slog.Logger) (s *Service, err error) {
	s = &Service{retention: cfg.Retention, pool: pool, directory: directory, logger: logger.With(slog.String("component", "notification"))}

	if cfg.Email.Host != "" {
		if s.mailer, err = newMailer(cfg.Email); err != nil {
			return nil, err
		}
	}

	if cfg.Webhook.URL != "" {
		if s.webhook, err = newWebhook(cfg.Webhook); err != nil {
			return nil, err
		}
	}

	return s, nil
}

// Admit looks up the addresses of e-mails. It skips users who were erased and
// rejects users who do not exist.
func (s *Service) Admit(ctx context.Context, db postgres.Querier, events []event.Event[Requested]) ([]error, error) {
	var ids []string

	for _, e := range events {
		if e.Payload.channel() == Email {
			ids = append(ids, e.Payload.UserID)
		}
	}

	verdicts := make([]error, len(events))
	if len(ids) == 0 {
		return verdicts, nil
	}

	addresses, err := s.directory(ctx, db, ids)
	if err != nil {
		return nil, err
	}

	for i := range events {
		p := &events[i].Payload
		if p.channel() != Email {
			continue
		}

		address, known := addresses[p.UserID]

		switch {
		case !known:
			verdicts[i] = event.Reject(fmt.Errorf("user_id: there is no user %s to send an e-mail to", p.UserID))
		case address == "":
			verdicts[i] = event.ErrSkip
		}

		p.address = address
	}

	return verdicts, nil
}

// Needs returns the dependency that sending e needs: e-mails wait together
// while the mail server is unavailable. Other channels need none.
func (s *Service) Needs(e event.Event[Requested]) string {
	if e.Payload.channel() == Email && s.mailer != nil {
		return MailServer
	}

	return ""
}

// Send sends one notification and returns the answer of the mail server or the
// webhook's receiver. A temporary failure is an event.LaterError, a final refusal
// is a rejection with the provider's reason, and an unavailable mail server is an
// event.UnavailableError.
func (s *Service) Send(ctx context.Context, e event.Event[Requested]) (answer string, err error) {
	user, content := slog.String("user_id", e.Payload.UserID), slog.String("content", e.Payload.Content)

	switch channel := e.Payload.channel(); {
	case channel == Webhook && s.webhook == nil:
		return "", event.Reject(errors.New("channel: is webhook, but notification.webhook.url is not set"))
	case channel == Webhook:
		return s.webhook.send(ctx, e)
	case channel == Log:
		s.logger.Info("notification", user, content)

		return "logged", nil
	case s.mailer == nil:
		s.logger.Info("e-mail not sent; set notification.email.host to send e-mails", user, slog.String("message_id", e.ID.String()), content)

		return "logged: notification.email.host is not set", nil
	default:
		return s.mailer.send(ctx, e)
	}
}

// Sent is a notification with the receiver's answer, if it was not skipped.
type Sent = event.Effected[Requested, string]

// Record stores the results of notifications.
func (s *Service) Record(ctx context.Context, tx pgx.Tx, sent []Sent) ([]event.Outgoing, error) {
	_, err := tx.Exec(ctx, `
		INSERT INTO notifications (message_id, user_id, channel, status, answer)
		SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[])`,
		postgres.Column(sent, func(n Sent) uuid.UUID { return n.ID }),
		postgres.Column(sent, func(n Sent) string { return n.Payload.UserID }),
		postgres.Column(sent, func(n Sent) string { return string(n.Payload.channel()) }),
		postgres.Column(sent, func(n Sent) string {
			if n.Result == nil {
				return "skipped"
			}

			return "sent"
		}),
		postgres.Column(sent, func(n Sent) string {
			if n.Result == nil {
				return "the user was erased"
			}

			return event.Text(*n.Result)
		}))
	if err != nil {
		return nil, fmt.Errorf("recording notifications: %w", err)
	}

	return nil, nil
}

// Forget deletes the records of notifications to a user and returns their
// number.
func (s *Service) Forget(ctx context.Context, tx pgx.Tx, userID string) (int64, error) {
	tag, err := tx.Exec(ctx, `DELETE FROM notifications WHERE user_id = $1`, userID)
	if err != nil {
		return 0, fmt.Errorf("deleting notifications of user %s: %w", userID, err)
	}

	return tag.RowsAffected(), nil
}

// DeleteExpired deletes expired records and returns their number.
func (s *Service) DeleteExpired(ctx context.Context) (int64, error) {
	return postgres.DeleteExpired(ctx, s.pool, "notifications", "sent_at", s.retention)
}

// Entry is the record of a notification.
type Entry struct {
	MessageID uuid.UUID `json:"message_id"`
	UserID    string    `json:"user_id"`
	Channel   Channel   `json:"channel"`
	Status    string    `json:"status"`
	Answer    string    `json:"answer"`
	SentAt    time.Time `json:"sent_at"`
}

// List returns up to limit notifications, newest first. An empty userID selects
// all users.
func (s *Service) List(ctx context.Context, userID string, limit int) ([]Entry, error) {
	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Entry], `
		SELECT message_id, user_id, channel, status, answer, sent_at FROM notifications
		WHERE $1 = '' OR user_id = $1 ORDER BY sent_at DESC LIMIT $2`, userID, limit)
	if err != nil {
		return nil, fmt.Errorf("listing notifications: %w", err)
	}

	return list, nil
}
