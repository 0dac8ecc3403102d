package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/envoy"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version, and the oldest Envoy that works with it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "aid %s (%s, %s/%s)\nenvoy %s or newer\n",
				version(), runtime.Version(), runtime.GOOS, runtime.GOARCH, envoy.MinVersion)
			return err
		},
	}
}

// commit is the tag or commit that the Makefile built, marked if the tree was not clean.
var commit string

// version returns what the Makefile recorded. For another build it is what the Go toolchain
// recorded: the module's version or the commit.
func version() string {
	if commit != "" {
		return commit
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, dirty := "unknown", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	return revision + dirty
}
