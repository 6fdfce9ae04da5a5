package main

import (
	"strings"

	"github.com/spf13/cobra"
)

func newAnalytics(opts *options) *cobra.Command {
	return group(opts, &cobra.Command{Use: "analytics", Short: "Count what users did", Example: "  millrace analytics top --days 7"},
		newAnalyticsTop, newAnalyticsDaily)
}

func daysFlag(cmd *cobra.Command, to *int) {
	countFlag(cmd, to, "days", 14, maxDays, "count this many days, including today")
}

// barWidth is how many characters the longest bar has.
const barWidth = 40

func bar(count, longest int64) string {
	if longest == 0 || count == 0 {
		return ""
	}

	return strings.Repeat("█", max(1, int(count*barWidth/longest)))
}
