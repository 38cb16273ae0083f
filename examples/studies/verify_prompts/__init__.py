"""Script verification: does this recording say this script?"""
