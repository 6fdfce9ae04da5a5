package event

import (
	"net/http"
	"strconv"
	"time"
)

// maxRetryAfter bounds what another system may ask for.
const maxRetryAfter = time.Hour

// RetryAfter reads the header of that name, seconds or a date (RFC 9110, section
// 10.2.3), for Later: at most an hour, 0 if it says nothing.
func RetryAfter(value string) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil {
		return max(0, min(time.Duration(seconds)*time.Second, maxRetryAfter))
	}

	if at, err := http.ParseTime(value); err == nil {
		return max(0, min(time.Until(at), maxRetryAfter))
	}

	return 0
}
