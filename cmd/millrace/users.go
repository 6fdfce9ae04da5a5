package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/shop/user"
)

func newUsers(opts *options) *cobra.Command {
	cmd := &cobra.Command{Use: "users", Short: "Look at users; erase one", Args: exactly(0)}
	show := &cobra.Command{
		Use: "show ID", Short: "Show a user with its history", Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			details, err := service.Users.Show(cmd.Context(), args[0])
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), details, func(w io.Writer) { writeUser(w, details) })
		}),
	}
	erase := &cobra.Command{
		Use: "erase ID", Short: "Make the personal data of a user unreadable, for ever",
		Long: `Destroy the key under which the personal data of a user is sealed. The events
keep their place and type; nobody can read them any more, in backups of the
events either. Restore no backup of the keys (table user_keys) from before.

Notifications to the user are forgotten, messages that wait are withdrawn, and
poisoned ones lose their content. Run it again when a late message about the
user has come into the poison queue. It does not reach tracked events (they go
after analytics.retention) and what brokers and other systems have.`,
		Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			done, err := service.Accounts.Erase(cmd.Context(), args[0])
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), done, func(w io.Writer) {
				fmt.Fprintf(w, "erased user %s; forgotten: %d notifications, %d waiting messages, the content of %d poisoned ones\n",
					done.UserID, done.Notifications, done.Waiting, done.Poisoned)
			})
		}),
	}

	var limit int

	list := &cobra.Command{
		Use: "list", Short: "List the users that changed last", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			users, err := service.Users.List(cmd.Context(), limit)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), users, func(w io.Writer) {
				fmt.Fprintln(w, "USER\tNAME\tEMAIL\tCHANGED")

				for _, u := range users {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", u.ID, orErased(u.Name), orErased(u.Email), stamp(u.UpdatedAt))
				}
			})
		}),
	}
	misses := &cobra.Command{
		Use: "misses", Short: "List updates of users that did not exist: the outcome user_not_found", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			list, err := service.Users.Misses(cmd.Context(), limit)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				fmt.Fprintln(w, "USER\tOUTCOME\tMESSAGE\tWHEN")

				for _, m := range list {
					fmt.Fprintf(w, "%s\tuser_not_found\t%s\t%s\n", m.UserID, m.MessageID, stamp(m.MissedAt))
				}
			})
		}),
	}

	for _, c := range []*cobra.Command{list, misses} {
		countFlag(c, &limit, "limit", 20, maxLimit, "how many")
	}

	cmd.AddCommand(show, list, misses, erase)

	return cmd
}

func orErased(text *string) string {
	if text == nil {
		return "(erased)"
	}

	return oneLine(*text, 60)
}

func writeUser(w io.Writer, u user.Details) {
	fmt.Fprintf(w, "user\t%s\n", u.ID)

	if u.Erased {
		fmt.Fprintln(w, "erased\tyes")
	} else {
		fmt.Fprintf(w, "name\t%s\n", u.Name)
		fmt.Fprintf(w, "email\t%s\n", u.Email)
	}

	for _, name := range u.Properties.Names() {
		fmt.Fprintf(w, "%s\t%s\n", name, oneLine(string(u.Properties[name]), 200))
	}

	fmt.Fprintln(w, "history\t")

	for _, e := range u.History {
		data, _ := json.Marshal(e.Data)
		fmt.Fprintf(w, "  %d\t%s\t%s\t%s\n", e.Version, e.Type, stamp(e.RecordedAt), oneLine(string(data), 200))
	}
}

func newNotifications(opts *options) *cobra.Command {
	cmd := &cobra.Command{Use: "notifications", Short: "Look at what was sent to users", Args: exactly(0)}

	var (
		userID string
		limit  int
	)

	list := &cobra.Command{
		Use: "list", Short: "List the newest notifications, with the answer of the provider", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			entries, err := service.Notifications.List(cmd.Context(), userID, limit)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), entries, func(w io.Writer) {
				fmt.Fprintln(w, "USER\tCHANNEL\tSTATUS\tWHEN\tMESSAGE\tANSWER")

				for _, e := range entries {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.UserID, e.Channel, e.Status, stamp(e.SentAt), e.MessageID, oneLine(e.Answer, 80))
				}
			})
		}),
	}
	list.Flags().StringVar(&userID, "user", "", "only those to this user")
	countFlag(list, &limit, "limit", 20, maxLimit, "how many")
	cmd.AddCommand(list)

	return cmd
}

// Bounds of what a command shows.
const (
	maxLimit = 100_000
	maxDays  = 3660
)

// barWidth is how many characters the longest bar has.
const barWidth = 40

func bar(count, longest int64) string {
	if longest == 0 || count == 0 {
		return ""
	}

	return strings.Repeat("█", max(1, int(count*barWidth/longest)))
}

func newAnalytics(opts *options) *cobra.Command {
	cmd := &cobra.Command{Use: "analytics", Short: "Count what users did", Args: exactly(0)}

	var days, limit int

	top := &cobra.Command{
		Use: "top", Short: "Show the most frequent events", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			counts, err := service.Analytics.Top(cmd.Context(), days, limit)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), counts, func(w io.Writer) {
				if len(counts) == 0 {
					fmt.Fprintf(w, "no events in the last %d days\n", days)

					return
				}

				for _, c := range counts {
					fmt.Fprintf(w, "%s\t%d\t%s\n", oneLine(c.Event, 40), c.Count, bar(c.Count, counts[0].Count))
				}
			})
		}),
	}
	countFlag(top, &limit, "limit", 20, maxLimit, "how many")

	daily := &cobra.Command{
		Use: "daily [EVENT]", Short: "Show how often an event, or any, occurred each day (UTC)",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("expected one event at most: usage: %s", cmd.UseLine())}
			}

			return nil
		},
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			name := strings.Join(args, "")

			list, err := service.Analytics.Daily(cmd.Context(), name, days)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				var longest int64
				for _, d := range list {
					longest = max(longest, d.Count)
				}

				if longest == 0 {
					fmt.Fprintln(w, strings.TrimSpace("no events "+name)+fmt.Sprintf(" in the last %d days", days))

					return
				}

				for _, d := range list {
					fmt.Fprintf(w, "%s\t%d\t%s\n", d.Day.Format(time.DateOnly), d.Count, bar(d.Count, longest))
				}
			})
		}),
	}

	for _, c := range []*cobra.Command{top, daily} {
		countFlag(c, &days, "days", 14, maxDays, "of the last days, today included")
	}

	cmd.AddCommand(top, daily)

	return cmd
}
