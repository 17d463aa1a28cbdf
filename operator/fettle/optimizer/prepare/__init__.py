"""Prepare"""
